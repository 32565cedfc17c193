import threading

import numpy as np
import pytest

from qwenvl_edge import load_picture
from qwenvl_edge.errors import FrameError, PromptError, QwenVLError
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.robotics.node import NodeSettings, Question, VlmNode
from support.clock import moved_clock
from support.patience import PATIENCE_S
from support.scripted import engine


def frame(shade=0):
    return np.full((4, 6, 3), shade, np.uint8)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    return moved_clock(monkeypatch, "inputs.camera", "robotics.node")


@pytest.fixture
def make(tmp_path):
    """Makes a node over scripted answers."""

    def make(*answers, end="<|im_end|>", generation=None, **settings):
        qwen, backend = engine(tmp_path, *(answer + end for answer in answers), generation=generation)
        return VlmNode(qwen, NodeSettings(**settings)), backend

    return make


def test_a_question_is_about_the_newest_frame(make):
    node, backend = make("red")
    for shade in range(3):
        node.put_frame(frame(shade), header=f"header {shade}")
    node.put_question("Which colour?", header="from here")
    answer = node.step()
    assert (answer.reply.text, answer.frame.number, answer.frame.header) == ("red", 2, "header 2")
    assert answer.question == Question("Which colour?", "from here")
    assert node.status.answered == 1 and node.status.frames_dropped == 2 and backend.encoded == 1
    assert answer.latency_ms == node.status.latency_ms > 0


def test_questions_wait_for_the_first_frame_and_keep_their_order(make):
    node, _ = make("one", "two")
    node.put_question("first")
    node.put_question("second")
    assert node.step() is None
    node.put_frame(frame())
    assert [(a.question.text, a.reply.text) for a in (node.step(), node.step())] == [
        ("first", "one"),
        ("second", "two"),
    ]
    assert node.step() is None


def test_a_frame_can_be_asked_about_again(make):
    node, backend = make("one", "two")
    node.put_frame(frame())
    assert [node.answer(Question(text)).frame.number for text in ("first", "second")] == [0, 0]
    assert backend.encoded == 1


def test_too_many_questions(make):
    node, _ = make("x")
    for number in range(10):
        node.put_question(f"question {number}")
    node.put_frame(frame())
    assert node.step().question.text == "question 2" and node.status.questions_dropped == 2


def test_the_standing_prompt_is_asked_once_a_frame(make):
    node, _ = make("one", "two", prompt="What is there?")
    assert node.step() is None
    node.put_frame(frame(0))
    assert node.step().reply.text == "one"
    assert node.step() is None
    node.put_frame(frame(1))
    assert (node.step().reply.text, node.wait_s()) == ("two", None)


def test_the_rate_limits_the_standing_prompt_only(make, clock):
    node, _ = make("one", "two", "three", prompt="What is there?", max_rate_hz=2)
    node.put_frame(frame(0))
    assert node.step().reply.text == "one"
    clock.now += 0.2
    node.put_frame(frame(1))
    assert node.step() is None
    assert node.wait_s() == pytest.approx(0.3)
    node.put_question("And now?")
    assert node.step().reply.text == "two"
    clock.now += 0.31
    assert (node.wait_s(), node.step().reply.text) == (None, "three")


def test_stale_frames_are_not_answered_about(make, clock):
    node, _ = make("fine", prompt="What is there?", max_age_ms=250)
    node.put_frame(frame(), age_s=0.3)
    with pytest.raises(FrameError, match="the newest frame is 300 ms old, older than the limit of 250 ms"):
        node.step()
    assert node.step() is None  # said once a frame
    assert (node.status.failed, node.status.error[:16]) == (1, "the newest frame")
    node.put_frame(frame(), age_s=0.2)
    assert node.step().reply.text == "fine"


def test_a_clock_that_is_ahead_counts_as_now(make, clock):
    node, _ = make("fine", max_age_ms=1)
    node.put_frame(frame(), age_s=-5)
    assert node.answer(Question("?")).latency_ms == 0


def test_a_question_may_bring_its_picture(make):
    node, _ = make("red", max_age_ms=1)
    node.put_frame(frame(1), age_s=9)
    answer = node.answer(Question("Which colour?"), picture=load_picture(frame(7)))
    assert answer.reply.pictures[0].pixels[0, 0, 0] == 7 and answer.frame.number == -1


def test_no_frame(make):
    node, _ = make()
    with pytest.raises(FrameError, match="no frame has come yet"):
        node.answer(Question("What is there?"))


def test_pieces_come_one_by_one_and_cancelling_ends_them(make):
    node, _ = make("one two three four")
    node.put_frame(frame())
    stop, pieces = CancelToken(), []

    def take(piece):
        pieces.append(piece)
        if len(pieces) == 2:
            stop.cancel()

    answer = node.answer(Question("Count."), take, cancel=stop)
    assert answer.reply.finish_reason == "cancelled" and answer.reply.text == "".join(pieces)
    assert 0 < len(answer.reply.text) < len("one two three four")


def test_a_base_model_continues(make):
    node, _ = make("on the left", end="<|endoftext|>", generation={"chat_format": "raw"})
    node.put_frame(frame())
    assert node.answer(Question("The mug is")).reply.text == "on the left"


def test_settings_reach_the_engine(make):
    node, _ = make("one two three", max_new_tokens=1)
    node.put_frame(frame())
    assert node.answer(Question("Count.")).reply.finish_reason == "length"


def test_running_in_a_thread(make):
    node, _ = make("one", "two", prompt="What is there?", max_age_ms=60_000)
    answers, errors, came = [], [], threading.Semaphore(0)

    def collect(into):
        def take(item):
            into.append(item)
            came.release()

        return take

    thread = threading.Thread(target=node.run, args=(collect(answers), collect(errors)))
    thread.start()
    node.put_frame(frame(0))
    assert came.acquire(timeout=PATIENCE_S)
    node.put_frame(frame(1), age_s=100)
    assert came.acquire(timeout=PATIENCE_S)
    node.put_frame(frame(2))
    assert came.acquire(timeout=PATIENCE_S)
    node.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert [answer.frame.number for answer in answers] == [0, 2]
    assert "older than the limit" in str(errors[0]) and len(errors) == 1
    with pytest.raises(FrameError, match="closed"):
        node.put_frame(frame(3))


def test_closing_ends_the_answer(make):
    node, _ = make("one two three four")
    node.put_frame(frame())
    answer = node.answer(Question("Count."), lambda piece: node.close())
    assert answer.reply.finish_reason == "cancelled"


def test_a_failure_does_not_stop_the_node(make):
    node, _ = make("fine")
    answers, errors, done = [], [], threading.Event()
    node.put_question("a " * 5000)  # does not fit into the context
    node.put_question("Which colour?")
    node.put_frame(frame())

    def take(answer):
        answers.append(answer)
        done.set()

    thread = threading.Thread(target=node.run, args=(take, errors.append))
    thread.start()
    assert done.wait(PATIENCE_S)
    node.close()
    thread.join(PATIENCE_S)
    assert answers[0].reply.text == "fine" and "tokens" in str(errors[0]) and node.status.failed == 1


class Failing:
    """An engine that fails at one question in a way that it never should."""

    can_chat = True

    def __init__(self, qwen):
        self._qwen = qwen

    def stream(self, text, **options):
        if text == "Fail.":
            raise KeyError("nobody thought of it")
        return self._qwen.stream(text, **options)


def test_a_failure_that_nobody_thought_of_does_not_stop_the_node_either(tmp_path):
    node = VlmNode(Failing(engine(tmp_path, "fine<|im_end|>")[0]))
    errors, answered = [], threading.Event()
    node.put_question("Fail.")
    node.put_question("Which colour?")
    node.put_frame(frame())
    thread = threading.Thread(target=node.run, args=(lambda _: answered.set(), errors.append))
    thread.start()
    assert answered.wait(PATIENCE_S)
    node.close()
    thread.join(PATIENCE_S)
    assert [str(error) for error in errors] == ["the answer failed: KeyError: 'nobody thought of it'."]
    assert (node.status.failed, node.status.answered) == (1, 1)


@pytest.mark.parametrize(
    "settings", [{"max_rate_hz": 0}, {"max_age_ms": -1}, {"max_new_tokens": 0}, {"deadline_ms": 0}, {"prompt": " "}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(QwenVLError, match=r"max_|deadline_ms|prompt"):
        NodeSettings(**settings)


def test_empty_questions_are_refused(make):
    with pytest.raises(PromptError, match="empty"):
        make()[0].put_question(" ")
