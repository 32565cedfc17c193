"""What is computed again and what is not, on scripted answers: reused_tokens against the prompts themselves."""

import numpy as np
import pytest

from qwenvl_edge.backends.kept import cache_bytes
from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.errors import BackendError, QwenVLError
from support.scripted import MODEL, ScriptedBackend, engine, ids

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
BLUE = np.full((20, 40, 3), (0, 0, 255), np.uint8)
OK = "ok<|im_end|>"
LONG = "word " * 90


def shared(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_ten_turns_compute_no_token_twice(tmp_path):
    qwen, backend = engine(tmp_path, *[f"answer {i}<|im_end|>" for i in range(10)])
    history, computed = (), 0
    for turn in range(10):
        reply = qwen.chat(f"question {turn}", images=[RED] if turn == 0 else [], history=history)
        history = reply.history
        computed += reply.stats.prefill_tokens + reply.stats.new_tokens - 1  # a stop token is not computed
        assert reply.stats.reused_tokens + reply.stats.prefill_tokens == reply.stats.prompt_tokens
        assert computed == reply.stats.prompt_tokens + reply.stats.new_tokens - 1
    assert backend.encoded == 1


def test_a_second_question_about_a_picture_starts_behind_it(tmp_path):
    qwen, backend = engine(tmp_path, OK, OK)
    qwen.chat("What is it?", images=[RED])
    stats = qwen.chat("Where is it?", images=[RED.copy()]).stats
    assert stats.reused_tokens == shared(backend.prompt_ids(0), backend.prompt_ids(1)) > backend.prompt_ids().index(-1)
    assert (stats.images_encoded, backend.encoded) == (0, 1)


def test_another_picture_at_the_same_place_is_computed(tmp_path):
    qwen, backend = engine(tmp_path, OK, OK)
    qwen.chat("What is it?", images=[RED])
    stats = qwen.chat("What is it?", images=[BLUE]).stats
    assert stats.reused_tokens == backend.prompt_ids().index(-1)
    assert backend.encoded == 2
    assert not np.array_equal(backend.prompts[0], backend.prompts[1])


def test_an_edit_invalidates_only_what_follows(tmp_path):
    qwen, backend = engine(tmp_path, OK, OK)
    qwen.chat("third", history=[("first", "one"), ("second", "two")])
    stats = qwen.chat("third", history=[("first", "one"), ("changed", "two")]).stats
    assert stats.reused_tokens == shared(backend.prompt_ids(0), backend.prompt_ids(1)) > 20


def test_the_last_token_of_a_known_prompt_is_computed_for_its_logits(tmp_path):
    qwen, _ = engine(tmp_path, OK, OK)
    qwen.chat("hi")
    assert qwen.chat("hi").stats.prefill_tokens == 1


def test_another_ntk_factor_shares_nothing(tmp_path):
    qwen, _ = engine(tmp_path, OK, OK, config={"seq_length": 64})
    qwen.chat("hi")
    assert qwen.chat("hi " * 70).stats.reused_tokens == 0


def test_forks_share_their_prefix_and_both_go_on(tmp_path):
    qwen, backend = engine(tmp_path, *[OK] * 5)
    root = qwen.chat("first " + LONG)
    one = qwen.chat("one " + LONG, history=root.history)
    two = qwen.chat("two " + LONG, history=root.history)
    assert two.stats.reused_tokens == shared(backend.prompt_ids(1), backend.prompt_ids(2)) > 90
    for branch in (one, two):  # neither has lost what the other one did not need
        stats = qwen.chat("more", history=branch.history).stats
        assert stats.prefill_tokens < 20
    texts = [backend.prompt_ids(i) for i in (3, 4)]
    assert texts[0][: len(backend.prompt_ids(1))] == backend.prompt_ids(1)
    assert texts[1][: len(backend.prompt_ids(2))] == backend.prompt_ids(2)


def test_conversations_beyond_the_memory_are_forgotten_oldest_first(tmp_path):
    one_cache_mb = 1  # cache_memory_mb is whole megabytes; the model's cache takes less, so enlarge the model
    model = {"num_layers": (1 << 20) // cache_bytes(MODEL, MODEL.max_position_embeddings) // 2}
    questions = [f"{name} {LONG}" for name in ("alpha", "beta", "gamma")]
    qwen, _ = engine(tmp_path, *[OK] * 5, model=model, cache_memory_mb=one_cache_mb)
    for question in questions:
        qwen.chat(question, system=question[:5])
    assert qwen.chat(questions[2], system="gamma").stats.prefill_tokens == 1
    assert qwen.chat(questions[0], system="alpha").stats.prefill_tokens > 90


def test_smaller_numbers_leave_room_for_more_conversations(tmp_path, monkeypatch):
    """What a backend says that a cache takes is what is counted."""
    model = {"num_layers": (1 << 20) // cache_bytes(MODEL, MODEL.max_position_embeddings)}

    def half(self, capacity):
        return cache_bytes(self.model, capacity, item_bytes=2)

    monkeypatch.setattr(ScriptedBackend, "cache_bytes", half)
    qwen, _ = engine(tmp_path, *[OK] * 3, model=model, cache_memory_mb=1)
    for name in ("alpha", "beta"):
        qwen.chat(f"{name} {LONG}", system=name)
    assert qwen.chat(f"alpha {LONG}", system="alpha").stats.prefill_tokens == 1


def test_a_single_cache_is_continued_in_place(tmp_path):
    model = {"num_layers": (1 << 20) // cache_bytes(MODEL, MODEL.max_position_embeddings)}
    qwen, backend = engine(tmp_path, *[OK] * 3, model=model, cache_memory_mb=1)
    qwen.chat("one " + LONG)
    assert qwen.chat("two " + LONG).stats.reused_tokens == shared(backend.prompt_ids(0), backend.prompt_ids(1)) > 0
    assert qwen.chat("one " + LONG).stats.prefill_tokens > 90


def test_forgetting(tmp_path):
    qwen, backend = engine(tmp_path, OK, OK)
    qwen.chat("hi", images=[RED])
    qwen.forget()
    stats = qwen.chat("hi", images=[RED]).stats
    assert (stats.reused_tokens, stats.images_encoded, backend.encoded) == (0, 1, 2)


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_chunks(tmp_path, chunk):
    qwen, backend = engine(tmp_path, OK, prefill_chunk=chunk)
    stats = qwen.chat("hi", images=[RED]).stats
    whole, rest = divmod(stats.prompt_tokens, chunk)
    assert backend.chunks == [chunk] * whole + [rest] * (rest > 0)
    plain, reference = engine(tmp_path, OK)
    plain.chat("hi", images=[RED])
    np.testing.assert_array_equal(backend.prompts[0], reference.prompts[0])


def test_a_failed_prompt_is_not_continued(tmp_path):
    qwen, backend = engine(tmp_path, OK, OK, prefill_chunk=16)
    decode, calls = backend.decode_unchecked, []

    def fail_late(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise BackendError("out of luck.")
        return decode(*arguments)

    backend.decode_unchecked = fail_late
    with pytest.raises(BackendError, match="luck"):
        qwen.chat(LONG)
    backend.decode_unchecked = decode
    assert qwen.chat(LONG).stats.reused_tokens == 0


def test_a_failure_between_proposed_tokens_is_not_continued_wrongly(tmp_path, monkeypatch):
    answer = "<ref>a mug</ref><box>(1,2),(3,4)</box>" * 3 + "<|im_end|>"
    qwen, backend = engine(tmp_path, answer, OK, OK)
    sample, drawn = Sampler.sample, []

    def fail_late(self, logits, previous=(), **options):
        drawn.append(len(previous))
        if len(drawn) == 30:
            raise BackendError("out of luck.")
        return sample(self, logits, previous, **options)

    monkeypatch.setattr(Sampler, "sample", fail_late)
    with pytest.raises(BackendError, match="luck"):
        qwen.chat("hi")
    monkeypatch.undo()
    slot = qwen._answerer.decoder._slot
    rows = backend.caches[0].rows[: slot.cache.length, 0] // MODEL.hidden_size
    assert slot.computed.tolist() == rows.tolist() and len(rows) >= drawn[-1]


def test_an_answer_that_is_worded_otherwise_in_the_history_is_computed_from_there(tmp_path):
    qwen, backend = engine(tmp_path, "  spaced<|im_end|>", OK)
    first = qwen.chat("hi")
    assert first.raw_text == "spaced"  # stripped, as the published code keeps it
    stats = qwen.chat("more", history=first.history).stats
    assert stats.reused_tokens == first.stats.prompt_tokens
    assert backend.prompt_ids(1)[first.stats.prompt_tokens :][: len(ids("spaced"))] == ids("spaced")


@pytest.mark.parametrize("options", [{"prefill_chunk": 0}, {"prefill_chunk": True}, {"cache_memory_mb": 0.5}])
def test_sizes_are_checked(tmp_path, options):
    with pytest.raises(QwenVLError, match=f"{next(iter(options))} is"):
        engine(tmp_path, **options)
