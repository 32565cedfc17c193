"""Answers of an engine: its prompts, the text as it comes, options, and what ends an answer or the call."""

import threading

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.errors import BackendError, BundleError, ContextError, PromptError, QwenVLError
from qwenvl_edge.families.places import Box
from support.scripted import FAMILY, ScriptedBackend, decode, engine, ids, write_bundle

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
BLUE = np.full((100, 50, 3), (0, 0, 255), np.uint8)


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


def test_history_as_pairs(tmp_path):
    qwen, backend = engine(tmp_path, "ok<|im_end|>")
    qwen.chat("b", history=[("a", "answer")], system="")
    assert decode(backend.prompt_ids()) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )


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


def test_answers_and_engines_are_short_when_printed(tmp_path):
    qwen, _ = engine(tmp_path, "<ref>dots</ref><box>(0,0),(500,500)</box><|im_end|>")
    reply = qwen.chat("Where?", images=[RED])
    assert repr(reply) == f"<Reply 'dots', boxes=1, {reply.stats.new_tokens} tokens, 'stop'>"
    assert repr(qwen).startswith(f"<QwenVLEngine {str(tmp_path)!r} on ") and len(repr(qwen)) < 200
