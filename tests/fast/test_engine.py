import threading

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.errors import BackendError, BundleError, ContextError, PromptError, QwenVLError
from qwenvl_edge.families.boxes import Box, Quad
from support.scripted import FAMILY, ScriptedBackend, decode, engine, ids, write_bundle

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
BLUE = np.full((100, 50, 3), (0, 0, 255), np.uint8)


def test_an_answer_with_boxes(tmp_path):
    qwen, backend = engine(tmp_path, "<ref> the mug</ref><box>(100,200),(500,1000)</box> stands here.<|im_end|>")
    reply = qwen.chat("Where is the mug?", images=[RED])
    assert reply.text == "the mug stands here."
    assert reply.raw_text == "<ref> the mug</ref><box>(100,200),(500,1000)</box> stands here."
    assert reply.boxes == (Box("the mug", 4.0, 4.0, 20.0, 20.0, 0),)
    assert (reply.quads, reply.malformed, reply.finish_reason) == ((), (), "stop")
    assert reply.draw().size == (40, 20)
    assert backend.encoded == 1


def test_the_prompt_that_the_backend_sees(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>")
    reply = qwen.chat("hi", images=[RED], system="Be brief.")
    prompt = backend.prompt_ids()
    start = prompt.index(FAMILY.special_tokens["<img>"]) + 1
    assert prompt[start : start + 4] == [-1] * 4
    assert decode(prompt[:start] + prompt[start + 4 :]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nPicture 1: <img></img>\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert reply.stats.prompt_tokens == len(prompt) and reply.stats.image_tokens == 4


def test_follow_up_questions(tmp_path):
    qwen, backend = engine(
        tmp_path,
        "<ref>Red</ref><box>(0,0),(1,1)</box>.<|im_end|>",
        "<box>(0,0),(500,500)</box><|im_end|>",
        "done<|im_end|>",
    )
    first = qwen.chat("What is it?", images=[RED])
    second = qwen.chat("Where?", history=first.history)
    assert second.boxes == (Box("", 0.0, 0.0, 20.0, 10.0, 0),)  # placed in the earlier turn's picture
    third = qwen.chat("Again", images=[BLUE, RED], history=second.history)
    assert [turn.assistant for turn in third.history] == [first.raw_text, second.raw_text, "done"]
    assert [len(turn.pictures) for turn in third.history] == [1, 0, 2]
    text = decode([token for token in backend.prompt_ids() if token >= 0])
    assert "assistant\n<ref>Red</ref><box>(0,0),(1,1)</box>.<|im_end|>" in text
    assert backend.encoded == 2  # RED is encoded once for all three turns
    assert [reply.stats.images_encoded for reply in (first, second, third)] == [1, 0, 1]


def test_tokens_are_counted_as_chat_counts_them(tmp_path):
    qwen, backend = engine(tmp_path, *["ok<|im_end|>"] * 3)
    history = [([{"image": RED}, {"text": "What is it?"}], "Red."), ("x " * 300, "y"), ("so", "yes")]
    calls = [
        ("hi", {}),
        ([{"image": None}, {"text": "Where?"}], {"images": [RED], "system": "Be brief."}),
        ("and now?", {"images": [BLUE, RED], "history": history}),  # the turns before "so" find no room
    ]
    for message, arguments in calls:
        count = qwen.count_tokens(message, **arguments)
        assert count == qwen.chat(message, **arguments).stats.prompt_tokens == len(backend.prompt_ids())


def test_counting_computes_nothing_and_counts_what_does_not_fit(tmp_path):
    qwen, backend = engine(tmp_path)
    assert qwen.count_tokens("word " * 600, images=[RED]) > 600 > qwen.max_context
    assert backend.encoded == backend.steps == 0
    with pytest.raises(PromptError, match="empty"):
        qwen.count_tokens("")
    base, _ = engine(tmp_path, generation={"chat_format": "raw"})
    with pytest.raises(PromptError, match="base model"):
        base.count_tokens("hi")


def test_history_as_pairs(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>")
    qwen.chat("b", history=[("a", "answer")], system="")
    assert decode(backend.prompt_ids()) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )


def test_boxes_belong_to_the_named_or_the_last_picture(tmp_path):
    answer = (
        "<box>(0,0),(1000,1000)</box> In Picture 1: <box>(0,0),(1000,1000)</box> "
        "Picture 7 <quad>(0,0),(0,1),(1,1),(1,0)</quad>"
    )
    qwen, _ = engine(tmp_path, answer + "<|im_end|>")
    reply = qwen.chat("Compare", images=[RED, BLUE], max_new_tokens=200)
    assert [box.image for box in reply.boxes] == [1, 0]
    assert (reply.boxes[0].x2, reply.boxes[0].y2) == (50.0, 100.0)
    assert reply.quads == (Quad("", ((0.0, 0.0), (0.0, 0.1), (0.05, 0.1), (0.05, 0.0)), 1),)
    assert reply.draw().size == (40, 20) and reply.draw(1).size == (50, 100)
    with pytest.raises(QwenVLError, match="no picture 2"):
        reply.draw(2)


@pytest.mark.parametrize(
    ("question", "answer", "image"),
    [
        ("Where is the red mug in picture 1?", "<box>(0,0),(9,9)</box>", 0),
        ("图片1里的红色的杯子在哪里?", "<box>(0,0),(9,9)</box>", 0),
        ("Where is it in picture 1?", "Picture 2: <box>(0,0),(9,9)</box>", 1),
        ("Is it in picture 1 or picture 2?", "<box>(0,0),(9,9)</box>", 1),
        ("Where is it in picture 3?", "<box>(0,0),(9,9)</box>", 1),
    ],
)
def test_boxes_belong_to_the_picture_that_the_question_names(tmp_path, question, answer, image):
    qwen, _ = engine(tmp_path, answer + "<|im_end|>")
    assert [box.image for box in qwen.chat(question, images=[RED, BLUE]).boxes] == [image]


def test_boxes_without_a_picture_are_reported(tmp_path):
    qwen, _ = engine(tmp_path, "<box>(0,0),(9,9)</box>x<box>(1<|im_end|>")
    reply = qwen.chat("hi")
    assert reply.boxes == ()
    assert sorted(reply.malformed) == ["<box>(0,0),(9,9)</box>", "<box>(1"]
    with pytest.raises(QwenVLError, match="no picture"):
        reply.draw()


def test_complete_continues_markup(tmp_path):
    raw = {"chat_format": "raw"}
    qwen, backend = engine(tmp_path, "(0,0),(500,500)</box><|endoftext|>", " a dog.\nHuman: and", generation=raw)
    reply = qwen.complete([{"image": RED}, {"text": "<ref>the red mug</ref><box>"}])
    assert reply.boxes == (Box("the red mug", 0.0, 0.0, 20.0, 10.0, 0),)
    assert (reply.text, reply.raw_text, reply.history) == ("", "(0,0),(500,500)</box>", ())
    assert FAMILY.special_tokens["<box>"] in backend.prompt_ids()
    assert qwen.complete("This is").text == "a dog."
    assert not qwen.can_chat
    for call in (qwen.chat, qwen.stream):
        with pytest.raises(PromptError, match="base model"):
            call("hi")


def test_complete_does_not_report_the_boxes_of_its_prompt(tmp_path):
    qwen, _ = engine(tmp_path, "yes<box>(5,5),(6,6)</box><|im_end|>")
    reply = qwen.complete("<ref>a</ref><box>(1,1),(2,2)</box> b</box>", images=[RED])
    assert [box.label for box in reply.boxes] == [""] and reply.boxes[0].x1 == 0.2
    assert (reply.text, reply.malformed) == ("yes", ())


def test_refs_hold_what_was_marked(tmp_path):
    answer = (
        "<ref>mugs</ref><box>(0,0),(500,500)</box><box>(0,0),(1000,1000)</box> and <ref>air</ref> on "
        "<box>(0,0),(9,9)</box><ref>a sign</ref><quad>(0,0),(1,0),(1,1),(0,1)</quad>"
    )
    qwen, _ = engine(tmp_path, answer + "<|im_end|>")
    reply = qwen.chat("What is there?", images=[RED], max_new_tokens=200)
    mugs, air, sign = reply.refs
    assert (mugs.label, mugs.boxes, mugs.quads) == ("mugs", reply.boxes[:2], ())
    assert (air.label, air.boxes, air.quads) == ("air", (), ())
    assert (sign.label, sign.boxes, sign.quads) == ("a sign", (), reply.quads)
    assert len(reply.boxes) == 3 and reply.boxes[2].label == ""


def test_refs_without_a_picture_have_no_places(tmp_path):
    qwen, _ = engine(tmp_path, "<ref>a</ref><box>(0,0),(9,9)</box><|im_end|>")
    (ref,) = qwen.chat("hi").refs
    assert (ref.label, ref.boxes) == ("a", ())


def test_grounding(tmp_path):
    qwen, backend = engine(tmp_path, "(0,0),(500,500)</box><box>(500,500),(1000,1000)</box><|im_end|>")
    reply = qwen.ground(RED, "the <box> red</ref> mug")
    start, prompt = FAMILY.special_tokens["<ref>"], backend.prompt_ids()
    assert decode(prompt[prompt.index(start) :]) == "<ref>the <box> red</ref> mug</ref><box>"
    assert [token for token in prompt if token in FAMILY.special_tokens.values()] == [
        FAMILY.special_tokens[tag] for tag in ("<img>", "</img>", "<ref>", "</ref>", "<box>")
    ]
    assert [(box.x1, box.x2) for box in reply.boxes] == [(0.0, 20.0), (20.0, 40.0)]
    assert [ref.label for ref in reply.refs] == ["the <box> red</ref> mug"]
    for phrase in ("", "  ", None):
        with pytest.raises(PromptError, match="the phrase is"):
            qwen.ground(RED, phrase)


@pytest.mark.parametrize(
    ("generation", "language", "reading", "caption"),
    [
        ("chatml", "en", "OCR with grounding:<|im_end|>", "Describe the picture.<|im_end|>"),
        ("chatml", "zh", "带坐标的文字识别:<|im_end|>", "描述这张图片。<|im_end|>"),
        ("raw", "en", "OCR with grounding:", "Describe the image in English:"),
    ],
)
def test_reading_and_captions(tmp_path, generation, language, reading, caption):
    end = "<|im_end|>" if generation == "chatml" else "<|endoftext|>"
    generation = {"chat_format": generation, "do_sample": True, "temperature": 9.0}
    answers = ["<ref>OPEN</ref><quad>(0,0),(1000,0),(1000,1000),(0,1000)</quad>" + end, "A sign." + end]
    qwen, backend = engine(tmp_path, *answers, generation=generation)
    reply = qwen.read(RED, language=language)
    assert (reply.text, reply.refs[0].label, len(reply.quads)) == ("OPEN", "OPEN", 1)
    assert qwen.caption(RED, language=language).text == "A sign."
    for index, words in enumerate((reading, caption)):
        assert f"</img>\n{words}" in decode([token for token in backend.prompt_ids(index) if token >= 0])
    for ask in (qwen.read, qwen.caption):
        with pytest.raises(PromptError, match="the language is 'fr'"):
            ask(RED, language="fr")


def test_stop_sequences_of_several_tokens_are_held_back(tmp_path):
    human = ids("Human:")
    assert len(human) > 1
    qwen, _ = engine(
        tmp_path,
        [*ids("one "), *human[:-1], *ids(" two"), *human, *ids("never")],
        [*ids("x"), *human[:-1]],
        generation={"chat_format": "raw"},
    )
    assert qwen.complete("count").text == f"one {decode(human[:-1])} two"
    assert qwen.complete("count", max_new_tokens=len(human)).text == f"x{decode(human[:-1])}"


def test_streaming_shows_whole_characters_and_no_markup(tmp_path):
    answer = "  A 狗 🐕 and <ref>dogs</ref><box>(1,1),(2,2)</box> <box>(3,3),(4,4)</box>\n<|im_end|>"
    qwen, _ = engine(tmp_path, answer, answer)
    stream = qwen.stream("hi", images=[RED])
    with pytest.raises(QwenVLError, match="not complete"):
        _ = stream.reply
    pieces = list(stream)
    assert "".join(pieces) == stream.reply.text == "A 狗 🐕 and dogs"
    assert len(pieces) > 3 and "\ufffd" not in "".join(pieces)
    assert stream.reply.boxes == qwen.chat("hi", images=[RED]).boxes
    assert list(stream) == []


def test_torn_bytes_at_the_end_become_replacement_characters(tmp_path):
    dog = ids("🐕")
    assert len(dog) > 1
    qwen, _ = engine(tmp_path, [*ids("a"), *dog[:-1]])
    assert qwen.chat("hi", max_new_tokens=len(dog)).text == "a\ufffd"


def test_hidden_special_tokens_do_not_show(tmp_path):
    tokens = FAMILY.special_tokens
    qwen, _ = engine(
        tmp_path, [*ids("a"), tokens["<img>"], tokens["<imgpad>"], tokens["<|extra_0|>"], *ids("b<|im_end|>")]
    )
    assert qwen.chat("hi").raw_text == "ab"


def test_finish_reasons(tmp_path):
    long = ids("word " * 300)
    qwen, backend = engine(tmp_path, long, long, ids("x<|im_start|>"), ids("x<|endoftext|>"), max_context=60)
    assert (qwen.chat("hi", max_new_tokens=3).finish_reason, backend.steps) == ("length", 3)
    reply = qwen.chat("hi", max_new_tokens=500)
    assert reply.finish_reason == "context"
    assert reply.stats.prompt_tokens + reply.stats.new_tokens == 60 + 1  # the last token needs no room
    assert [qwen.chat("hi").finish_reason for _ in range(2)] == ["stop", "stop"]


def test_stats_count_every_token(tmp_path):
    qwen, _ = engine(tmp_path, "a b c<|im_end|>")
    stats = qwen.chat("hi").stats
    assert stats.new_tokens == len(ids("a b c<|im_end|>"))
    assert stats.ttft_ms >= stats.prefill_ms > 0
    assert len(stats.token_ms) == stats.new_tokens - 1 and min(stats.token_ms) > 0
    assert stats.decode_ms == pytest.approx(sum(stats.token_ms))
    assert stats.tokens_per_s == pytest.approx((stats.new_tokens - 1) / stats.decode_ms * 1000)


def test_cancelling_keeps_what_came(tmp_path):
    qwen, _ = engine(tmp_path, ids("one two three four"), "next<|im_end|>")
    with qwen.stream("hi") as stream:
        first = next(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.text.startswith(first.strip()) and "four" not in stream.reply.text
    unread = qwen.stream("hi")
    unread.close()
    with pytest.raises(QwenVLError, match="not complete"):
        _ = unread.reply
    assert qwen.chat("hi").text == "next"


def test_a_forgotten_stream_frees_the_engine(tmp_path):
    qwen, _ = engine(tmp_path, ids("one two<|im_end|>"), "after<|im_end|>")
    next(qwen.stream("hi"))
    assert qwen.chat("hi").text == "after"


def test_an_open_stream_is_not_waited_for_in_its_own_thread(tmp_path):
    qwen, _ = engine(tmp_path, ids("one two<|im_end|>"), "after<|im_end|>")
    stream = qwen.stream("hi")
    next(stream)
    with pytest.raises(QwenVLError, match="still open"):
        qwen.chat("hi")
    stream.close()
    assert qwen.chat("hi").text == "after"


def test_threads_take_turns(tmp_path):
    answers = [f"answer {i}<|im_end|>" for i in range(8)]
    qwen, _ = engine(tmp_path, *answers)
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(qwen.chat("hi").text)) for _ in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replies) == [f"answer {i}" for i in range(8)]


def test_a_prompt_that_does_not_fit_says_by_how_much(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>", max_context=64)
    words = " a" * 100
    with pytest.raises(ContextError, match=r"more than the context of 64") as caught:
        qwen.chat(words)
    total, excess = [int(word) for word in str(caught.value).split() if word.isdigit()][:2]
    assert total - excess == 64 and excess > 0
    assert backend.prompts == []
    with pytest.raises(ContextError):
        qwen.complete(words)


def test_a_prompt_that_just_fits(tmp_path):
    qwen, _ = engine(tmp_path, "ok<|im_end|>")
    length = qwen.chat("hi").stats.prompt_tokens
    small = QwenVLEngine(qwen.bundle, backend=ScriptedBackend("ok<|im_end|>"), max_context=length)
    reply = small.chat("hi")
    assert (reply.finish_reason, reply.stats.new_tokens) == ("context", 1)
    smaller = QwenVLEngine(qwen.bundle, backend=ScriptedBackend(), max_context=length - 1)
    with pytest.raises(ContextError, match=r"\b1 more than"):
        smaller.chat("hi")


def test_old_turns_make_room_for_the_answer(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>", "ok<|im_end|>", max_context=120)
    history = [(f"question {i} " + "word " * 10, "answer") for i in range(5)]
    reply = qwen.chat("hi", history=history, max_new_tokens=20)
    assert 0 < reply.stats.history_turns_dropped < 5
    assert reply.stats.prompt_tokens + 20 <= 120
    text = decode(backend.prompt_ids())
    assert "question 4" in text and "question 0" not in text
    assert len(reply.history) == 6


def test_a_small_context_still_keeps_history(tmp_path):
    qwen, _ = engine(tmp_path, "ok<|im_end|>", max_context=120)
    reply = qwen.chat("hi", history=[("a", "b")], max_new_tokens=512)
    assert reply.stats.history_turns_dropped == 0


def test_the_bundles_window_limits_history(tmp_path):
    qwen, _ = engine(tmp_path, "ok<|im_end|>", generation={"max_window_size": 30})
    reply = qwen.chat("hi", history=[("question", "answer")] * 3)
    assert reply.stats.history_turns_dropped == 3


def test_generation_defaults_and_overrides(tmp_path):
    generation = {"max_new_tokens": 2, "do_sample": True, "top_k": 1}
    qwen, _ = engine(tmp_path, *["a b c d e<|im_end|>"] * 2, generation=generation)
    assert qwen.chat("hi").stats.new_tokens == 2
    assert qwen.chat("hi", max_new_tokens=3, seed=1, temperature=0.5, top_p=0.9).stats.new_tokens == 3


# How an answer is drawn where its script and one other token are nearly as likely as each other, at 1.0 and 0.9.
HOT = {"do_sample": True, "temperature": 1.0, "top_k": 2, "top_p": 1.0}
NARROW = [{"do_sample": False}, {"top_k": 1}, {"temperature": 1e-3}, {"top_p": 1e-3}]


@pytest.mark.parametrize("narrow", NARROW, ids=str)
def test_sampling_follows_the_bundle_and_the_call(tmp_path, narrow):
    def strays(generation, options):
        """Whether any of four answers has the other token."""
        qwen, backend = engine(tmp_path, *["a b c d e f g h i j<|im_end|>"] * 4, generation=generation)
        backend.runner_up = ids("zz")[0]
        found = [qwen.chat("hi", max_new_tokens=10, seed=seed, **options).raw_text for seed in range(4)]
        return any("z" in text for text in found)

    assert strays(HOT, {}) and strays({}, HOT) and strays(narrow, HOT)
    assert not strays(HOT | narrow, {}) and not strays(HOT, narrow)


def test_repetition_penalty_sees_prompt_and_answer(tmp_path):
    in_prompt, fresh, other = ids("user")[0], ids("zz")[0], ids("qq")[0]
    qwen, backend = engine(tmp_path, [in_prompt, fresh, fresh, fresh])
    backend.runner_up = other
    qwen.chat("hi", max_new_tokens=4, repetition_penalty=1.5)
    # "user" stands in the prompt; "zz" is new once; then both have been seen and the likelier one is back.
    assert backend.taken == [other, fresh, fresh]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"beams": 4}, "unknown option beams"),
    ],
)
def test_options_are_checked_before_work_starts(tmp_path, options, message):
    qwen, backend = engine(tmp_path)
    for call in (qwen.chat, qwen.stream, qwen.complete):
        with pytest.raises(PromptError, match=message):
            call("hi", **options)
    assert backend.prompts == []


def test_a_failing_backend_leaves_the_engine_usable(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>")
    decode_step = backend.decode_unchecked

    def fail(*arguments):
        raise BackendError("the logits hold NaN.")

    backend.decode_unchecked = fail
    with pytest.raises(BackendError, match="NaN"):
        qwen.chat("hi")
    backend.decode_unchecked = decode_step
    assert qwen.chat("hi").text == "ok"


def test_unusable_engines(tmp_path):
    bundle = write_bundle(tmp_path)
    for size in (0, 513):
        with pytest.raises(ContextError, match="1 to 512"):
            QwenVLEngine(bundle, backend=ScriptedBackend(), max_context=size)
    with pytest.raises(BackendError, match="'tpu'"):
        QwenVLEngine(bundle, backend="tpu")
    with pytest.raises(BundleError, match="no bundle at"):
        QwenVLEngine(tmp_path / "missing")
    with pytest.raises(BundleError, match="'other'"):
        QwenVLEngine(write_bundle(tmp_path, family="other"), backend=ScriptedBackend())


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    path = tmp_path / "qwen.tiktoken"
    bundle = write_bundle(tmp_path)
    ranks = path.read_bytes()
    path.write_bytes(b"\n".join(ranks.splitlines()[:1990]))
    with pytest.raises(BundleError, match="1990 ranks"):
        QwenVLEngine(bundle, backend=ScriptedBackend())
    path.write_bytes(ranks + b"bW9yZQ== 2000\n")
    with pytest.raises(BundleError, match=r"qwen\.tiktoken: .*2000"):
        QwenVLEngine(bundle, backend=ScriptedBackend())


def test_unknown_chat_formats_are_refused(tmp_path):
    with pytest.raises(BundleError, match="'alpaca'"):
        engine(tmp_path, generation={"chat_format": "alpaca"})
    assert engine(tmp_path, generation={"chat_format": "chatml"})[0].can_chat


def test_features_of_many_pictures_are_kept_within_limits(tmp_path):
    qwen, backend = engine(tmp_path, *["ok<|im_end|>"] * 3)
    pictures = [np.full((2, 2), shade, np.uint8) for shade in range(20)]
    assert qwen.chat("hi", images=pictures + pictures[:1]).stats.images_encoded == 20
    assert qwen.chat("hi", images=pictures[-2:]).stats.images_encoded == 0
    assert qwen.chat("hi", images=pictures[:1], system="another").stats.images_encoded == 1
    assert backend.encoded == 21
