"""chat_many: every row as if alone, on a small random model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge import CancelToken, Constraint, ContextError, PromptError, QwenVLEngine, QwenVLError
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from support.conversations import PICTURES, WORDS, examples, item


@pytest.fixture(scope="module")
def backend(random_bundle):
    """What the first of the engines computes on."""
    return OnnxRuntimeBackend(random_bundle, threads=1)


@pytest.fixture(scope="module")
def engines(random_bundle, backend):
    """Two engines on one bundle; seq_length is 16, so that batches have to be split by dynamic-NTK factor."""
    together = QwenVLEngine(random_bundle, backend=backend, prefill_chunk=32)
    return together, QwenVLEngine(random_bundle, threads=1)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.integers(1, 4))
@settings(max_examples=examples(40), deadline=None)
def test_every_row_is_as_if_alone(engines, seeds, max_batch):
    together, alone = engines
    together.forget()
    replies = together.chat_many([item(seed) for seed in seeds], max_batch=max_batch)
    for seed, reply in zip(seeds, replies, strict=True):
        expected = alone.chat(**item(seed))
        assert (reply.raw_text, reply.finish_reason) == (expected.raw_text, expected.finish_reason)
        assert reply.stats.new_tokens == expected.stats.new_tokens == len(reply.stats.token_ms) + 1
        assert len(reply.history) == len(expected.history) and len(reply.pictures) == len(expected.pictures)


def test_constrained_rows_are_as_if_alone(engines):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    together, alone = engines
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
    forms = [Constraint.json(schema), Constraint.boxes(), None, Constraint.regex("[a-z]{3,9} of (red|blue)")]
    asked = [{**item(seed), "constraint": form} for seed, form in enumerate(forms * 2)]
    replies = together.chat_many(asked, max_batch=4)
    for arguments, reply in zip(asked, replies, strict=True):
        expected = alone.chat(**arguments)
        assert (reply.raw_text, reply.finish_reason) == (expected.raw_text, expected.finish_reason)
        assert reply.stats.forced_tokens == expected.stats.forced_tokens
    assert sum(reply.stats.forced_tokens for reply in replies) > 10


def test_what_the_prompts_share_is_computed_once(engines):
    qwen = engines[0]
    qwen.forget()
    questions = [[{"image": PICTURES[0]}, {"text": words}] for words in WORDS[:3]]
    stats = [reply.stats for reply in qwen.chat_many(questions, max_new_tokens=3)]
    assert [each.images_encoded for each in stats] == [1, 0, 0]
    assert min(each.reused_tokens for each in stats[1:]) > 20


def test_words_alone_are_messages(engines):
    replies = engines[0].chat_many(["a", "b"], max_new_tokens=2, do_sample=False)
    assert [reply.history[0].user[0].text for reply in replies] == ["a", "b"]
    assert engines[0].chat_many([]) == []


def test_rows_have_their_own_controls(engines):
    token = CancelToken()
    token.cancel()
    long = {"message": "a", "max_new_tokens": 20, "do_sample": False}
    replies = engines[0].chat_many(
        [long, {**long, "cancel": token}, {**long, "constraint": Constraint.choice(["yes", "no"])}, long]
    )
    assert [reply.finish_reason for reply in replies] == ["length", "cancelled", "stop", "length"]
    assert replies[1].raw_text == "" and replies[2].raw_text in ("yes", "no")
    assert replies[0].raw_text == replies[3].raw_text == engines[1].chat(**long).raw_text


def test_rows_have_their_own_deadlines(engines, backend, monkeypatch):
    """The clock moves only with a step of the batch, ten milliseconds each."""
    together, alone = engines
    plain, steps = backend.decode_unchecked, []

    def decode(cache, embeds, *arguments, **options):
        steps.extend([embeds] if len(embeds) > 1 else [])
        return plain(cache, embeds, *arguments, **options)

    monkeypatch.setattr("qwenvl_edge.inputs.request.time.perf_counter", lambda: len(steps) * 0.01)
    monkeypatch.setattr(backend, "decode_unchecked", decode)
    long = {"message": "a", "max_new_tokens": 20, "do_sample": False}
    replies = together.chat_many([long, {**long, "deadline_ms": 45}, {**long, "deadline_ms": 95}, long])
    assert [reply.finish_reason for reply in replies] == ["length", "deadline", "deadline", "length"]
    assert [reply.stats.new_tokens for reply in replies] == [20, 6, 11, 20]  # one before the first step, one in each
    whole = alone.chat(**long).raw_text
    assert replies[0].raw_text == replies[3].raw_text == whole
    assert all(whole.startswith(reply.raw_text.rstrip("\ufffd")) for reply in replies)
    assert [reply.raw_text for reply in together.chat_many([long, long])] == [whole, whole]


def test_deadlines_that_pass_before_the_batch_begins(engines):
    long = {"message": "a", "max_new_tokens": 20, "do_sample": False}
    late = {**long, "deadline_ms": 1e-6}
    replies = engines[0].chat_many([late, long, late])
    assert [reply.finish_reason for reply in replies] == ["deadline", "length", "deadline"]
    assert [reply.stats.new_tokens for reply in replies] == [0, 20, 0]
    assert replies[1].raw_text == engines[1].chat(**long).raw_text
    everyone = engines[0].chat_many(["a", "b"], deadline_ms=1e-6)
    assert [reply.finish_reason for reply in everyone] == ["deadline", "deadline"]
    assert engines[0].chat(**long).raw_text == replies[1].raw_text


def test_a_full_context_ends_a_row(engines):
    small = QwenVLEngine(engines[1].bundle, threads=1, max_context=100)
    options = {"message": "a", "max_new_tokens": 200, "do_sample": False}
    expected = small.chat(**options)
    first, second = small.chat_many([options, {**options, "max_new_tokens": 5}])
    assert expected.finish_reason == first.finish_reason == "context" and second.finish_reason == "length"
    assert first.raw_text == expected.raw_text and first.raw_text.startswith(second.raw_text)


@pytest.mark.parametrize(
    ("messages", "options", "error", "text"),
    [
        (["a", ""], {}, PromptError, "empty"),
        (["a", {"images": []}], {}, PromptError, "item 1 has no"),
        (["a", {"message": "b", "beams": 2}], {}, PromptError, "beams"),
        (["a", "b " * 600], {}, ContextError, "more than the context"),
        (["a"], {"max_batch": 0}, QwenVLError, "max_batch is 0"),
    ],
)
def test_nothing_is_computed_unless_everything_can_be(engines, messages, options, error, text):
    engines[0].forget()
    with pytest.raises(error, match=text):
        engines[0].chat_many(messages, **options)
    assert engines[0].chat("a", max_new_tokens=1).stats.reused_tokens == 0
