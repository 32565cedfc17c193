"""Log-probabilities of an answer's tokens against a log-softmax in NumPy, on logits that follow from the last token."""

import threading

import numpy as np
import pytest

from qwenvl_edge import CancelToken, Constraint, QwenVLEngine
from qwenvl_edge.errors import BackendError, PromptError
from support.repeating_backend import RepeatingBackend, logits_after
from support.scripted import FAMILY, ids, write_bundle

LONG = {"message": "hi", "max_new_tokens": 40, "do_sample": False}
SAMPLED = {"message": "hi", "max_new_tokens": 30, "do_sample": True, "temperature": 1.5, "seed": 3}
# Forced from the beginning, in the middle, behind a choice, and at the end.
NO_CHOICE = Constraint.choice(["word " * 39 + "word"])
FORCED = Constraint.regex("its colour is (red|blue), (one|two) mugs")


@pytest.fixture
def qwen(tmp_path):
    return QwenVLEngine(write_bundle(tmp_path), backend=RepeatingBackend(), prefill_chunk=16)


@pytest.fixture
def backend(qwen):
    return qwen._answerer.decoder.backend


def log_softmax(logits):
    logits = logits[: FAMILY.decodable].astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def check(reply, alternatives):
    """Every entry is that of the logits after the token before it; all of them together are the answer."""
    before = ids("\n")[-1]  # the end of the prompt
    assert len(reply.logprobs) == reply.stats.new_tokens
    for entry in reply.logprobs:
        expected = log_softmax(logits_after(before))
        likeliest = np.argsort(-expected, kind="stable")[:alternatives]
        assert entry.logprob == pytest.approx(expected[entry.id], abs=1e-5)
        assert [each.id for each in entry.top] == likeliest.tolist()
        assert [each.logprob for each in entry.top] == pytest.approx(expected[likeliest].tolist(), abs=1e-5)
        assert all(each.top == () for each in entry.top)
        before = entry.id
    shown = [entry.data for entry in reply.logprobs if entry.id not in FAMILY.hidden_ids]
    assert b"".join(shown).decode(errors="replace").strip() == reply.raw_text


@pytest.mark.parametrize("options", [LONG, SAMPLED])
@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("alternatives", [0, 5, 20])
def test_an_answer(qwen, options, lookup, alternatives):
    reply = qwen.chat(**options, lookup=lookup, logprobs=alternatives)
    check(reply, alternatives)
    assert (reply.stats.accepted_tokens > 0) == (lookup and options is LONG)
    assert reply.raw_text == qwen.chat(**options, lookup=lookup).raw_text


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("length", [3, 8, 200])
def test_forced_tokens(qwen, lookup, length):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    options = {"message": "hi", "constraint": FORCED, "max_new_tokens": length, "lookup": lookup, "do_sample": False}
    reply = qwen.chat(**options, logprobs=2)
    assert reply.stats.forced_tokens > 1
    plain = qwen.chat(**options)
    assert (plain.raw_text, plain.stats.new_tokens) == (reply.raw_text, reply.stats.new_tokens)
    if reply.finish_reason == "stop":
        check(reply, 2)
    else:  # what completes the form was not taken from the model
        assert len(reply.logprobs) == reply.stats.new_tokens == length


def test_an_answer_without_any_choice(qwen):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    for replies in (
        [qwen.chat("hi", constraint=NO_CHOICE, max_new_tokens=400, logprobs=1)],
        qwen.chat_many(["hi", "hi"], constraint=NO_CHOICE, max_new_tokens=400, logprobs=1),
    ):
        for reply in replies:  # longer than a chunk of the prefill
            assert reply.stats.forced_tokens > 30
            check(reply, 1)


def test_a_full_context_ends_behind_forced_tokens(tmp_path):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    prompt = QwenVLEngine(write_bundle(tmp_path), backend=RepeatingBackend()).chat("hi", max_new_tokens=1).stats
    room = 7
    options = {"constraint": NO_CHOICE, "max_new_tokens": 400, "logprobs": 0}
    small = QwenVLEngine(write_bundle(tmp_path), backend=RepeatingBackend(), max_context=prompt.prompt_tokens + room)
    for reply in (small.chat("hi", **options), *small.chat_many(["hi", "hi"], **options)):
        assert reply.finish_reason == "context" and len(reply.logprobs) == reply.stats.new_tokens == room + 1


def test_batches(qwen):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    asked = [
        {**LONG, "logprobs": 3},
        LONG,
        {**SAMPLED, "logprobs": 0},
        {"message": "hi", "constraint": FORCED, "max_new_tokens": 200, "logprobs": 3},
        {"message": "hi", "constraint": FORCED, "max_new_tokens": 5, "do_sample": False, "logprobs": 3},
    ]
    alone = [qwen.chat(**each, lookup=False) for each in asked]
    for reply, expected in zip(qwen.chat_many(asked, max_batch=3), alone, strict=True):
        assert (reply.raw_text, reply.logprobs) == (expected.raw_text, expected.logprobs)
    assert alone[1].logprobs is None
    for reply, alternatives in ((alone[0], 3), (alone[2], 0), (alone[3], 3)):
        check(reply, alternatives)


def test_a_batcher_tells_them_as_they_come(qwen):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    calls = []
    with qwen.batcher(rows=2) as batcher:
        free = batcher.submit(**LONG, logprobs=1, on_text=calls.append, on_logprobs=calls.append)
        forced = []
        held = batcher.submit("hi", constraint=FORCED, max_new_tokens=200, logprobs=1, on_logprobs=forced.extend)
    check(free.result(0), 1)
    check(held.result(0), 1)
    assert tuple(forced) == held.result(0).logprobs
    assert "".join(call for call in calls if isinstance(call, str)) == free.result(0).text
    told = [call for call in calls if not isinstance(call, str)]
    assert tuple(entry for call in told for entry in call) == free.result(0).logprobs and len(told) > 10
    assert calls.index(told[5]) < len(calls) - 10  # text goes on between them


def test_what_was_forced_before_a_cancellation_may_be_missing(qwen, backend):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    token, plain = CancelToken(), backend.decode_unchecked

    def decode(*arguments):
        if arguments[4].size:  # the prompt's last chunk
            token.cancel()
        return plain(*arguments)

    backend.decode_unchecked = decode
    reply = qwen.chat("hi", constraint=FORCED, logprobs=0, cancel=token)
    assert reply.finish_reason == "cancelled"
    assert 1 == len(reply.logprobs) < reply.stats.new_tokens


def test_off_costs_no_logits(qwen, backend):
    pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
    options = {"message": "hi", "constraint": FORCED, "max_new_tokens": 200, "lookup": False, "do_sample": False}
    assert qwen.chat(**options).logprobs is None
    asked, backend.asked = backend.asked, []
    assert {wanted for _, _, wanted in asked} == {0, 1} and any(tokens > 1 for _, tokens, wanted in asked[1:] if wanted)
    qwen.forget()
    reply = qwen.chat(**options, logprobs=0)
    assert sum(wanted for _, _, wanted in backend.asked) >= reply.stats.new_tokens
    assert len(backend.asked) <= len(asked) + 1  # one more at most, for what was forced at the end


def test_a_cancelled_answer_without_tokens(qwen):
    token = CancelToken()
    token.cancel()
    assert qwen.chat("hi", logprobs=0, cancel=token).logprobs == ()


@pytest.mark.parametrize("value", [-1, 21, True, 1.5, "3"])
def test_other_numbers_are_refused(qwen, backend, value):
    with pytest.raises(PromptError, match=r"logprobs is .*; it must be a whole number from 0 to 20"):
        qwen.chat("hi", logprobs=value)
    assert backend.asked == []


def test_the_form_of_the_openai_api(qwen):
    entry = qwen.chat(**LONG, logprobs=2).logprobs[0]
    form = entry.to_dict()
    assert set(form) == {"token", "logprob", "bytes", "top_logprobs"} and bytes(form["bytes"]) == entry.data
    assert form["token"] == entry.data.decode() and form["logprob"] == entry.logprob
    assert form["top_logprobs"][0] == {"token": form["token"], "logprob": form["logprob"], "bytes": form["bytes"]}


def test_chat_many_needs_no_thread(qwen):
    before = threading.active_count()
    seen = set()
    plain = qwen._answerer.decoder.backend.decode_unchecked

    def decode(*arguments):
        seen.add(threading.get_ident())
        return plain(*arguments)

    qwen._answerer.decoder.backend.decode_unchecked = decode
    qwen.chat_many([LONG] * 5, max_batch=2)
    assert seen == {threading.get_ident()} and threading.active_count() == before


def test_chat_many_reserves_as_many_rows_as_it_may(qwen, backend):
    caches = []
    plain = backend.new_cache
    backend.new_cache = lambda batch, capacity: caches.append((batch, capacity)) or plain(batch, capacity)
    replies = qwen.chat_many([LONG, {**LONG, "max_new_tokens": 9}, LONG, LONG], max_batch=3)
    longest = replies[0].stats.prompt_tokens + 40
    assert caches == [(3, longest)]
    assert max(rows for rows, _, _ in backend.asked) == 3
    backend.asked = []
    qwen.chat_many([LONG], max_batch=3)
    assert caches[1:] == [(1, longest)]


def test_an_error_of_one_row_ends_chat_many(qwen, backend):
    plain = backend.decode_unchecked
    steps = []

    def fail(cache, *arguments):
        steps.append(cache.batch)
        if steps.count(3) == 4:
            raise BackendError("out of order.")
        return plain(cache, *arguments)

    backend.decode_unchecked = fail
    with pytest.raises(BackendError, match="out of order"):
        qwen.chat_many([LONG] * 6, max_batch=3)
    assert steps.count(3) == 4 and steps[-1] == 3  # and nothing after it
    backend.decode_unchecked = plain
    assert qwen.chat(**LONG).stats.new_tokens == 40
