import gc
import threading

import pytest

from qwenvl_edge import CancelToken
from qwenvl_edge.decoding.pipeline import Turns
from qwenvl_edge.errors import QwenVLError
from support.scripted import engine


def waiting(turns, count):
    """Wait until `count` callers wait."""
    ready = threading.Event()
    while len(turns._waiting) < count:
        ready.wait(0.001)


def test_first_come_first_served():
    turns, order, threads = Turns(), [], []

    def work(number):
        with turns.take():
            order.append(number)

    with turns.take():
        for number in range(20):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            waiting(turns, number + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(20))


def test_giving_up():
    turns, given_up, granted = Turns(), threading.Event(), []

    def work():
        with turns.take(given_up.is_set) as mine:
            granted.append(mine)

    with turns.take():
        thread = threading.Thread(target=work)
        thread.start()
        waiting(turns, 1)
        given_up.set()
        thread.join()
    assert granted == [False] and not turns._waiting
    with turns.take(lambda: True) as mine:
        assert mine  # a free turn is taken; what to do with it is the caller's matter


def test_a_turn_is_not_taken_twice_by_one_thread():
    turns = Turns()
    with turns.take(), pytest.raises(QwenVLError, match="still open"), turns.take():
        pass
    with turns.take() as mine:
        assert mine


def test_an_error_inside_passes_the_turn_on():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.take():
        _ = 1 / 0
    with turns.take() as mine:
        assert mine


def test_an_interrupted_wait_leaves_the_queue():
    turns = Turns()

    def interrupt():
        raise KeyboardInterrupt

    def work():
        with pytest.raises(KeyboardInterrupt), turns.take(interrupt):
            pass

    with turns.take():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not turns._waiting
    with turns.take() as mine:
        assert mine


def test_a_queued_call_can_be_cancelled(tmp_path):
    qwen, backend = engine(tmp_path, "one two three four<|im_end|>", "after<|im_end|>")
    token, replies = CancelToken(), []
    with qwen.stream("hi") as stream:
        next(stream)
        thread = threading.Thread(target=lambda: replies.append(qwen.chat("queued", cancel=token)))
        thread.start()
        waiting(qwen._answerer.turns, 1)
        token.cancel()
        thread.join()
    assert (replies[0].finish_reason, replies[0].text) == ("cancelled", "")
    assert len(backend.prompts) == 1
    assert qwen.chat("hi").text == "after"


def test_a_stream_collected_in_another_thread_frees_the_engine(tmp_path):
    qwen, _ = engine(tmp_path, "one two three four<|im_end|>", "after<|im_end|>")
    cycle = {"stream": qwen.stream("hi")}
    cycle["self"] = cycle  # only the garbage collector finds it
    next(cycle["stream"])
    del cycle
    replies = []
    thread = threading.Thread(target=lambda: (gc.collect(), replies.append(qwen.chat("hi").text)))
    thread.start()
    thread.join()
    assert replies == ["after"]
