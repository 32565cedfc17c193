"""Cancelling by a real signal: while ONNX Runtime computes, and while a call waits for its turn."""

import signal
import threading

import pytest

from qwenvl_edge import CancelToken, QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from support.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no setitimer")
LONG = {"message": "a", "max_new_tokens": 60, "do_sample": False, "lookup": False}
SOON_S = 0.02
WAIT_S = PATIENCE_S


@pytest.fixture(scope="module")
def backend(random_bundle):
    return OnnxRuntimeBackend(random_bundle, threads=1)


@pytest.fixture(scope="module")
def qwen(random_bundle, backend):
    return QwenVLEngine(random_bundle, backend=backend)


@pytest.fixture
def token():
    """A token that SIGALRM cancels."""
    token = CancelToken()
    previous = signal.signal(signal.SIGALRM, lambda number, stack: token.cancel())
    yield token
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_a_signal_during_a_call_of_onnxruntime(qwen, backend, token, monkeypatch):
    whole = qwen.chat(**LONG)
    assert whole.finish_reason == "length"
    plain, steps = backend.decode_unchecked, []

    def decode(cache, *arguments, **options):
        steps.append(cache)
        logits = plain(cache, *arguments, **options)
        if len(steps) == 4:
            signal.setitimer(signal.ITIMER_REAL, SOON_S)
            while not token.cancelled:  # the same step again, so that the signal comes while it is computed
                logits = plain(cache, *arguments, **options)
        return logits

    monkeypatch.setattr(backend, "decode_unchecked", decode)
    reply = qwen.chat(**LONG, cancel=token)
    assert (reply.finish_reason, reply.stats.new_tokens, len(steps)) == ("cancelled", 4, 4)
    assert reply.raw_text and whole.raw_text.startswith(reply.raw_text.rstrip("\ufffd"))
    assert qwen.chat(**LONG).raw_text == whole.raw_text


def test_a_signal_while_a_call_waits_for_its_turn(qwen, token):
    whole = qwen.chat(**LONG)
    begun, go_on = threading.Event(), threading.Event()
    running = qwen.stream(**LONG)

    def read():
        next(running)
        begun.set()  # it has the turn, and keeps it
        go_on.wait(WAIT_S)
        running.finish()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert begun.wait(WAIT_S)
        signal.setitimer(signal.ITIMER_REAL, SOON_S)
        reply = qwen.chat(**LONG, cancel=token)
        assert not go_on.is_set() and token.cancelled
        assert (reply.finish_reason, reply.raw_text, reply.stats.prefill_tokens) == ("cancelled", "", 0)
    finally:
        go_on.set()
        reader.join()
    assert (running.reply.finish_reason, running.reply.text) == ("length", whole.text)
    assert qwen.chat(**LONG).raw_text == whole.raw_text
