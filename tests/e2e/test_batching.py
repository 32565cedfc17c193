"""Batcher: answers that come and go, every one as if alone, on a small random model."""

import random
import threading
from concurrent.futures import wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge import BackendError, CancelToken, Constraint, ContextError, PromptError, QwenVLEngine, QwenVLError
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.decoding import scheduler as batching
from support.conversations import examples, item
from support.patience import PATIENCE_S

WAIT_S = PATIENCE_S
LONG = {"message": "a", "max_new_tokens": 200, "do_sample": False}


@pytest.fixture(scope="module")
def backend(random_bundle):
    """What the first of the engines computes on."""
    return OnnxRuntimeBackend(random_bundle, threads=1)


@pytest.fixture(scope="module")
def engines(random_bundle, backend):
    """Two engines on one bundle; seq_length is 16, so that rows belong to several dynamic-NTK factors."""
    together = QwenVLEngine(random_bundle, backend=backend, prefill_chunk=32)
    return together, QwenVLEngine(random_bundle, threads=1)


@pytest.fixture(autouse=True, scope="module")
def small_rows():
    """Rows begin small, so that the batch has to grow while answers run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "_LEAST_CAPACITY", 16)
        yield


def ask(batcher, arguments):
    """Submit and wait; the pieces of text must be the text."""
    pieces = []
    reply = batcher.submit(**arguments, on_text=pieces.append).result(WAIT_S)
    assert "".join(pieces) == reply.text
    return reply


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=examples(25), deadline=None)
def test_every_answer_is_as_if_alone(engines, seeds, rows):
    together, alone = engines
    with together.batcher(rows=rows) as batcher:
        futures = [batcher.submit(**item(seed), client=str(seed % 3)) for seed in seeds]
    for seed, future in zip(seeds, futures, strict=True):
        reply, expected = future.result(0), alone.chat(**item(seed), lookup=False)
        assert (reply.raw_text, reply.finish_reason) == (expected.raw_text, expected.finish_reason)
        assert reply.stats.new_tokens == expected.stats.new_tokens
        assert len(reply.history) == len(expected.history)


def test_no_answer_is_crossed_among_sixteen_callers(engines):
    together, alone = engines
    answers = {seed: alone.chat(**item(seed)).raw_text for seed in range(40)}
    assert len(set(answers.values())) > 25
    wrong, done = [], []

    def work(caller):
        rng = random.Random(caller)
        for _ in range(25):
            seed = rng.randrange(40)
            text = ask(batcher, item(seed)).raw_text
            (done if text == answers[seed] else wrong).append((seed, text))

    with together.batcher(rows=8) as batcher:
        threads = [threading.Thread(target=work, args=(caller,)) for caller in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == [] and len(done) == 16 * 25


def test_a_running_answer_is_joined_and_cancelled(engines):
    began, submitted, token, joined = threading.Event(), threading.Event(), CancelToken(), []

    def cancel_when_the_other_has_ended(_):
        began.set()
        assert submitted.wait(WAIT_S)  # the long answer holds the batch at its first words until the other is there
        if joined[0].done():
            token.cancel()

    with engines[0].batcher(rows=2) as batcher:
        long = batcher.submit(**LONG, cancel=token, on_text=cancel_when_the_other_has_ended)
        assert began.wait(WAIT_S)
        joined.append(batcher.submit(**item(3)))
        submitted.set()
        assert joined[0].result(WAIT_S).raw_text == engines[1].chat(**item(3)).raw_text
        reply = long.result(WAIT_S)
    whole = engines[1].chat(**LONG)
    assert whole.finish_reason == "length" and reply.finish_reason == "cancelled"
    assert reply.stats.new_tokens > joined[0].result(0).stats.new_tokens
    assert whole.raw_text.startswith(reply.raw_text.rstrip("\ufffd"))


def test_waiting_requests_can_be_cancelled_and_expire(engines):
    token = CancelToken()
    token.cancel()
    with engines[0].batcher(rows=1) as batcher:
        long = batcher.submit(**LONG)
        cancelled = batcher.submit(**LONG, cancel=token)
        late = batcher.submit(**LONG, deadline_ms=1e-3)
        assert cancelled.result(WAIT_S).finish_reason == "cancelled"
        assert late.result(WAIT_S).finish_reason == "deadline"
        assert not cancelled.result().raw_text and cancelled.result().stats.new_tokens == 0
    assert long.result(0).finish_reason == "length"


def test_rows_keep_their_constraints(engines):
    constraint = Constraint.choice(["yes", "no", "maybe so"])
    with engines[0].batcher() as batcher:
        free = batcher.submit(**LONG)
        held = [batcher.submit("a", constraint=constraint, seed=seed) for seed in range(4)]
        texts = [future.result(WAIT_S).raw_text for future in held]
    expected = [engines[1].chat("a", constraint=constraint, seed=seed).raw_text for seed in range(4)]
    assert texts == expected and free.result(0).raw_text == engines[1].chat(**LONG).raw_text


def test_close_finishes_what_was_submitted_and_takes_nothing_more(engines):
    batcher = engines[0].batcher(rows=2)
    futures = [batcher.submit(**item(seed)) for seed in range(6)]
    batcher.close()
    assert all(future.done() for future in futures) and batcher.running == batcher.waiting == 0
    with pytest.raises(QwenVLError, match="closed"):
        batcher.submit("a")


def test_bad_requests_are_refused_at_once(engines):
    with engines[0].batcher() as batcher:
        with pytest.raises(PromptError, match="empty"):
            batcher.submit("")
        with pytest.raises(ContextError, match="more than the context"):
            batcher.submit("b " * 600)
    with pytest.raises(QwenVLError, match="rows is 0"):
        engines[0].batcher(rows=0)


def test_a_failed_step_fails_its_answers_only(engines, backend, monkeypatch):
    together = engines[0]
    plain, failing = backend.decode_unchecked, threading.Event()

    def decode(cache, *arguments):
        if failing.is_set() and arguments[0].shape[1] == 1:
            raise BackendError("out of order")
        return plain(cache, *arguments)

    with together.batcher(rows=4) as batcher:
        expected = ask(batcher, item(7)).raw_text
        failing.set()
        monkeypatch.setattr(backend, "decode_unchecked", decode)
        futures = [batcher.submit(**LONG, seed=seed) for seed in range(3)]
        wait(futures, WAIT_S)
        assert all(isinstance(future.exception(0), BackendError) for future in futures)
        failing.clear()
        assert ask(batcher, item(7)).raw_text == expected


def test_a_failed_row_fails_alone(engines):
    def complain(_):
        raise ValueError("not this")

    with engines[0].batcher(rows=4) as batcher:
        bad = batcher.submit(**LONG, on_text=complain)
        futures = [batcher.submit(**item(seed)) for seed in range(4)]
        assert not futures[0].cancel()
        assert isinstance(bad.exception(WAIT_S), ValueError)
        for seed, future in enumerate(futures):
            assert future.result(WAIT_S).raw_text == engines[1].chat(**item(seed)).raw_text


def test_the_engine_answers_others_when_the_batch_is_idle(engines):
    with engines[0].batcher(rows=2) as batcher:
        future = batcher.submit(**item(1))
        assert engines[0].chat(**item(2)).raw_text == engines[1].chat(**item(2)).raw_text
        assert future.result(WAIT_S).raw_text == engines[1].chat(**item(1)).raw_text
