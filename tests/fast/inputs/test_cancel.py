"""What ends an answer early, on scripted answers: the clock moves only when the backend works."""

import signal
import threading

import numpy as np
import pytest

from qwenvl_edge import CancelToken
from qwenvl_edge.errors import PromptError
from qwenvl_edge.inputs.request import Control
from support.scripted import engine, ids

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
BLUE = np.full((20, 40, 3), (0, 0, 255), np.uint8)
LONG = "word " * 90
ANSWER = ids("one two three four five six seven eight<|im_end|>")


class Clock:
    """Stands in for the time module: each call of a watched function takes `step_ms`."""

    def __init__(self):
        self.now = 0.0
        self.calls = 0

    def perf_counter(self):
        return self.now

    def slow(self, function, step_ms):
        def called(*arguments):
            self.now += step_ms / 1e3
            self.calls += 1
            return function(*arguments)

        return called


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("qwenvl_edge.inputs.request.time", clock)
    return clock


def check_unharmed(qwen, backend, prompts):
    """The next question is answered as if nothing had happened."""
    reply = qwen.chat("next")
    assert (reply.text, reply.finish_reason) == ("fine", "stop")
    assert len(backend.prompts) == prompts


def test_a_deadline_ends_an_answer_between_tokens(tmp_path, clock):
    qwen, backend = engine(tmp_path, ANSWER, "fine<|im_end|>")
    backend.decode_unchecked = clock.slow(backend.decode_unchecked, 10)
    reply = qwen.chat("hi", deadline_ms=45)
    assert reply.finish_reason == "deadline"
    assert reply.stats.new_tokens == 5  # computed at 10, 20, 30, 40 and 50 ms
    assert reply.raw_text and "one two three four five six seven eight".startswith(reply.raw_text)
    check_unharmed(qwen, backend, 2)


def test_a_deadline_lands_within_one_chunk(tmp_path, clock):
    qwen, backend = engine(tmp_path, "fine<|im_end|>", prefill_chunk=16)
    backend.decode_unchecked = clock.slow(backend.decode_unchecked, 10)
    reply = qwen.chat(LONG, deadline_ms=25)
    assert (reply.finish_reason, reply.text, reply.stats.new_tokens, reply.stats.ttft_ms) == ("deadline", "", 0, 0.0)
    assert clock.calls == 3 and reply.stats.prefill_tokens == 3 * 16
    check_unharmed(qwen, backend, 1)


def test_the_first_reason_stays(clock):
    """An answer that its deadline ended is not called cancelled for being closed later, and the other way round."""
    token = CancelToken()
    control = Control(token, started=0.0, deadline_ms=5)
    assert control.reason is None
    clock.now = 0.005
    assert control.reason == "deadline"
    token.cancel()
    assert control.reason == "deadline"
    cancelled = Control(token, started=0.0, deadline_ms=10)
    assert cancelled.reason == "cancelled"
    clock.now = 0.010
    assert cancelled.reason == "cancelled"


def test_a_reply_names_the_first_reason(tmp_path, clock, monkeypatch):
    """Cancelled at the moment at which the deadline is seen to have passed, before the reply is made."""
    qwen, backend = engine(tmp_path, ANSWER, "fine<|im_end|>")
    backend.decode_unchecked = clock.slow(backend.decode_unchecked, 10)
    token = CancelToken()

    def perf_counter():
        if clock.now >= 0.025:
            token.cancel()
        return clock.now

    monkeypatch.setattr(clock, "perf_counter", perf_counter)
    reply = qwen.chat("hi", deadline_ms=25, cancel=token)
    assert token.cancelled and (reply.finish_reason, reply.stats.new_tokens) == ("deadline", 3)
    check_unharmed(qwen, backend, 2)


def test_what_was_computed_before_a_deadline_is_continued(tmp_path, clock):
    qwen, backend = engine(tmp_path, "fine<|im_end|>", prefill_chunk=16)
    plain, backend.decode_unchecked = backend.decode_unchecked, clock.slow(backend.decode_unchecked, 10)
    computed = qwen.chat(LONG, deadline_ms=25).stats.prefill_tokens
    backend.decode_unchecked = plain
    stats = qwen.chat(LONG).stats
    assert stats.reused_tokens == computed == 48


def test_a_deadline_between_pictures(tmp_path, clock):
    qwen, backend = engine(tmp_path, "fine<|im_end|>")
    backend.encode = clock.slow(backend.encode, 10)
    reply = qwen.chat("hi", images=[RED, BLUE], deadline_ms=5)
    assert (reply.finish_reason, reply.stats.images_encoded, reply.stats.prefill_tokens) == ("deadline", 1, 0)
    assert len(reply.pictures) == 2
    check_unharmed(qwen, backend, 1)


def test_a_deadline_that_has_passed_before_the_turn_comes(tmp_path, clock):
    qwen, backend = engine(tmp_path, "fine<|im_end|>")
    stream = qwen.stream("hi", deadline_ms=5)
    clock.now = 1.0
    assert stream.finish().finish_reason == "deadline" and not backend.prompts
    check_unharmed(qwen, backend, 1)


@pytest.mark.parametrize("chunks", [1, 3])
def test_cancelling_lands_within_one_chunk(tmp_path, chunks):
    qwen, backend = engine(tmp_path, "fine<|im_end|>", prefill_chunk=16)
    token, decode = CancelToken(), backend.decode_unchecked

    def count_and_cancel(*arguments):
        if len(backend.chunks) == chunks - 1:
            token.cancel()
        return decode(*arguments)

    backend.decode_unchecked = count_and_cancel
    reply = qwen.chat(LONG, cancel=token)
    assert (reply.finish_reason, len(backend.chunks)) == ("cancelled", chunks)
    assert qwen.chat(LONG, cancel=token).finish_reason == "cancelled"  # it stays cancelled
    assert len(backend.chunks) == chunks
    backend.decode_unchecked = decode
    check_unharmed(qwen, backend, 1)


def test_cancelling_from_another_thread(tmp_path):
    qwen, backend = engine(tmp_path, ids("a b c ") * 50, "fine<|im_end|>")
    token, begun = CancelToken(), threading.Event()
    decode = backend.decode_unchecked

    def announce(*arguments):
        begun.set()
        if backend.steps == 3:
            killer.join()  # the answer goes on only once the other thread has cancelled it
        return decode(*arguments)

    backend.decode_unchecked = announce
    killer = threading.Thread(target=lambda: (begun.wait(), token.cancel()))
    killer.start()
    reply = qwen.chat("hi", cancel=token, max_new_tokens=100)
    assert reply.finish_reason == "cancelled" and reply.stats.new_tokens <= 4
    check_unharmed(qwen, backend, 2)


def test_cancelling_from_a_signal_handler(tmp_path):
    qwen, backend = engine(tmp_path, ids("a b c ") * 50, "fine<|im_end|>")
    token, decode = CancelToken(), backend.decode_unchecked

    def interrupted(*arguments):
        if backend.steps == 3:
            signal.raise_signal(signal.SIGUSR1)
        return decode(*arguments)

    backend.decode_unchecked = interrupted
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: token.cancel())
    try:
        reply = qwen.chat("hi", cancel=token, max_new_tokens=100)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert (reply.finish_reason, reply.stats.new_tokens) == ("cancelled", 4)
    check_unharmed(qwen, backend, 2)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["three"], "one two"),
        (["zz", " fo"], "one two three"),
        (["ne two th"], "o"),
        (["nine"], "one two three four five six seven eight"),
    ],
)
def test_stop_strings(tmp_path, stop, text):
    qwen, _ = engine(tmp_path, ANSWER, ANSWER)
    reply = qwen.chat("hi", stop=stop)
    assert (reply.text, reply.raw_text) == (text, text)
    assert reply.finish_reason == ("stop" if stop == ["nine"] else "stop_string")
    pieces = list(stream := qwen.stream("hi", stop=stop))
    assert "".join(pieces) == stream.reply.text == text


def test_stop_strings_see_markup(tmp_path):
    qwen, _ = engine(tmp_path, "<ref>a</ref><box>(1,2),(3,4)</box><ref>b</ref><box>(1,2),(3,4)</box><|im_end|>")
    reply = qwen.chat("hi", images=[RED], stop=["</box><ref>b"])
    assert (reply.finish_reason, reply.boxes, reply.text) == ("stop_string", (), "a")
    assert reply.malformed == ("<box>(1,2),(3,4)",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "word"}, "stop is 'word'"),
        ({"stop": [""]}, "stop is"),
        ({"stop": [1]}, "stop is"),
        ({"deadline_ms": 0}, "deadline_ms is 0"),
        ({"deadline_ms": "5"}, "deadline_ms is '5'"),
        ({"cancel": True}, "cancel is of type bool"),
    ],
)
def test_controls_are_checked(tmp_path, options, message):
    qwen, backend = engine(tmp_path)
    with pytest.raises(PromptError, match=message):
        qwen.chat("hi", **options)
    assert backend.prompts == []
