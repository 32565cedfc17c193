"""VlmNode: frames and questions in, answers about the newest frame out. Knows no transport."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, cast

from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import FrameError, PromptError, QwenVLError
from qwenvl_edge.inputs.camera import Frame, FrameSource
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.inputs.options import anything, check_fields, dict_of, number, optional, text, whole
from qwenvl_edge.inputs.pictures import ChannelOrder, Picture
from qwenvl_edge.inputs.prompt import check_text
from qwenvl_edge.replies.reply import Reply

if TYPE_CHECKING:
    from qwenvl_edge.inputs.options import Overrides

_NO_CAMERA = -1  # the frame number of a picture that came with its question
_POSITIVE = optional(number("a number greater than 0", above=0))
_OPTIONS = dict_of("a name in options", text(), "an entry of options", anything())  # the engine checks them
_WAITING = 8  # questions; as with frames, what a robot asked long ago is not worth an answer


@dataclass(frozen=True)
class NodeSettings:
    """Settings of a node: its standing prompt and its limits.

    Attributes:
        prompt: asked about every new frame; None answers questions only.
        max_rate_hz: how often the prompt is asked at most; None asks as often as frames come and answers are ready.
        max_age_ms: frames captured longer ago are not answered about; None takes any.
        max_new_tokens: the longest answer; None takes the bundle's own limit.
        deadline_ms: ends an answer with what was said by then; None waits for its end.
        options: further options of the engine's calls, such as a constraint.

    Raises:
        QwenVLError: a value is out of its range.
    """

    prompt: Annotated[str | None, optional(text())] = None
    max_rate_hz: Annotated[float | None, _POSITIVE] = None
    max_age_ms: Annotated[float | None, _POSITIVE] = None
    max_new_tokens: Annotated[int | None, optional(whole("a whole number of at least 1", least=1))] = None
    deadline_ms: Annotated[float | None, _POSITIVE] = None
    options: Annotated[Mapping[str, Any], _OPTIONS] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, QwenVLError)
        if self.prompt is not None and not self.prompt.strip():
            raise PromptError("the prompt is empty; give words, or leave it out to answer questions only.")

    @property
    def overrides(self) -> Overrides:
        """Overrides for the engine's calls."""
        given = cast("Overrides", dict(self.options))
        if self.max_new_tokens is not None:
            given["max_new_tokens"] = self.max_new_tokens
        if self.deadline_ms is not None:
            given["deadline_ms"] = self.deadline_ms
        return given


@dataclass(frozen=True)
class Question:
    """Words and the `header` of the message that brought them, which comes back with the answer."""

    text: str
    header: Any = None


@dataclass(frozen=True)
class NodeAnswer:
    """A reply with the question and the frame that it is about; latency_ms runs from the frame's capture."""

    question: Question
    frame: Frame
    reply: Reply
    latency_ms: float


@dataclass(frozen=True)
class Status:
    """Counters since the node began, for diagnostics.

    latency_ms is that of the last answer; error says what failed since, "" if nothing did.
    """

    answered: int = 0
    failed: int = 0
    frames_dropped: int = 0
    questions_dropped: int = 0
    latency_ms: float = 0.0
    error: str = ""


class VlmNode:
    """Asks an engine about the newest frame; may be fed from any thread.

    Put frames and questions as they come; either let a thread `run` the node, or call `step` from a loop of your own.
    Questions are answered first, in their order, then the standing prompt, once a frame and within its rate.
    """

    def __init__(self, engine: QwenVLEngine, settings: NodeSettings | None = None) -> None:
        self._engine = engine
        self._settings = settings or NodeSettings()
        self._frames = FrameSource()
        self._questions: deque[Question] = deque()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._state = threading.Lock()
        self._newest: Frame | None = None
        self._prompted = -1  # number of the frame that the standing prompt was asked about
        self._asked = float("-inf")  # when that was
        self._answered = self._failed = self._questions_dropped = 0
        self._latency_ms = 0.0
        self._error = ""

    @property
    def status(self) -> Status:
        """Counters since the node began."""
        return Status(
            self._answered,
            self._failed,
            self._frames.dropped,
            self._questions_dropped,
            self._latency_ms,
            self._error,
        )

    @property
    def settings(self) -> NodeSettings:
        """The settings of the next answer."""
        return self._settings

    def change(self, settings: NodeSettings) -> None:
        """Take other settings from the next answer on; from any thread."""
        self._settings = settings
        self._wake.set()

    def put_frame(
        self, pixels: Any, *, age_s: float = 0.0, header: Any = None, channel_order: ChannelOrder = "rgb"
    ) -> None:
        """Give the node a newer frame.

        Args:
            pixels: uint8 array as FrameSource.put takes it.
            age_s: seconds since its capture; what a skewed clock makes negative counts as 0.
            header: comes back with the answer.
            channel_order: "rgb", "bgr", or "nv12" for an array [3H/2, W].

        Raises:
            ImageError: the array has another shape or dtype.
            FrameError: the node is closed.
        """
        captured = time.monotonic() - max(age_s, 0.0)
        self._frames.put(pixels, captured=captured, header=header, channel_order=channel_order)
        self._wake.set()

    def put_question(self, text: str, *, header: Any = None) -> None:
        """Ask about the newest frame; of more than eight waiting questions the oldest is dropped.

        Raises:
            PromptError: the question is empty.
        """
        if not check_text(text, "the question").strip():
            raise PromptError("the question is empty; send words.")
        with self._state:
            if len(self._questions) == _WAITING:
                self._questions.popleft()
                self._questions_dropped += 1
            self._questions.append(Question(text, header))
        self._wake.set()

    def step(
        self, on_piece: Callable[[str], None] | None = None, *, cancel: CancelToken | None = None
    ) -> NodeAnswer | None:
        """Answer the next question, or the standing prompt if its time has come; None if there is nothing to do.

        A question waits for the first frame. Arguments and errors are those of `answer`.
        """
        frame = self._take()
        if frame is None:
            return None
        with self._state:
            question = self._questions.popleft() if self._questions else None
        if question is None:
            prompt = self._settings.prompt
            if prompt is None or frame.number == self._prompted or self._pause_s() > 0:
                return None
            self._prompted, self._asked = frame.number, time.monotonic()
            question = Question(prompt)
        return self._answer(question, frame, on_piece, cancel)

    def answer(
        self,
        question: Question,
        on_piece: Callable[[str], None] | None = None,
        *,
        picture: Picture | None = None,
        cancel: CancelToken | None = None,
    ) -> NodeAnswer:
        """Answer a question now, about the newest frame (even if that was asked about before) or a picture.

        Args:
            question: the words.
            on_piece: called with each piece of the text as it comes.
            picture: what the question is about, instead of the newest frame.
            cancel: ends the answer early from elsewhere.

        Raises:
            FrameError: no frame has come yet, or the newest is older than max_age_ms.
            QwenVLError: the errors of the engine, and what on_piece raises.
        """
        frame = self._take() if picture is None else Frame(picture, time.monotonic(), _NO_CAMERA)
        return self._answer(question, frame, on_piece, cancel)

    def run(self, on_answer: Callable[[NodeAnswer], None], on_error: Callable[[QwenVLError], None]) -> None:
        """Answer until the node is closed; call on_answer and on_error from this thread.

        An error that on_answer raises goes to on_error.
        """
        while not self._closed.is_set():
            self._wake.wait(self.wait_s())
            self._wake.clear()
            try:
                while (answer := self.step()) is not None:
                    self._deliver(answer, on_answer)
            except QwenVLError as error:
                if not self._closed.is_set():
                    on_error(error)
                self._wake.set()  # more may wait after the one that failed

    def _deliver(self, answer: NodeAnswer, on_answer: Callable[[NodeAnswer], None]) -> None:
        try:
            on_answer(answer)
        except QwenVLError:
            raise
        except Exception as error:  # the transport's
            raise QwenVLError(f"the answer cannot be sent: {type(error).__name__}: {error}.") from error

    def wait_s(self) -> float | None:
        """Seconds after which `step` may have work without a new frame or question; None if never."""
        settings = self._settings
        if settings.prompt is None or settings.max_rate_hz is None:
            return None
        return self._pause_s() or None

    def close(self) -> None:
        """End `run` and the answer that is being computed; refuse new frames."""
        self._closed.set()
        self._frames.close()
        self._wake.set()

    def _take(self) -> Frame | None:
        """The newest frame, which may have been asked about before; None if none has come yet."""
        with self._state, contextlib.suppress(FrameError):
            self._newest = self._frames.take(timeout_s=0)
        return self._newest

    def _answer(
        self,
        question: Question,
        frame: Frame | None,
        on_piece: Callable[[str], None] | None,
        cancel: CancelToken | None,
    ) -> NodeAnswer:
        """Answer, and count it. Raises QwenVLError, whatever failed."""
        try:
            fresh = self._check_age(frame)
            reply = self._reply(question, fresh, on_piece, cancel)
        except QwenVLError as error:
            self._count_failure(error)
            raise
        except Exception as error:  # a robot's node goes on
            failure = QwenVLError(f"the answer failed: {type(error).__name__}: {error}.")
            self._count_failure(failure)
            raise failure from error
        answer = NodeAnswer(question, fresh, reply, fresh.age_ms)
        with self._state:
            self._answered += 1
            self._latency_ms = answer.latency_ms
            self._error = ""
        return answer

    def _count_failure(self, error: QwenVLError) -> None:
        with self._state:
            self._failed += 1
            self._error = str(error)

    def _check_age(self, frame: Frame | None) -> Frame:
        limit = self._settings.max_age_ms
        if frame is None:
            raise FrameError("no frame has come yet; look after the camera.")
        if limit is not None and frame.number != _NO_CAMERA and frame.age_ms > limit:
            raise FrameError(
                f"the newest frame is {frame.age_ms:,.0f} ms old, older than the limit of {limit:g} ms; look after the "
                "camera, or allow more."
            )
        return frame

    def _reply(
        self, question: Question, frame: Frame, on_piece: Callable[[str], None] | None, cancel: CancelToken | None
    ) -> Reply:
        engine = self._engine
        overrides: Overrides = {**self._settings.overrides, "cancel": cancel}
        if not engine.can_chat:  # a base model continues the words instead of answering them
            return engine.complete(question.text, images=[frame.picture], **overrides)
        with engine.stream(question.text, images=[frame.picture], **overrides) as stream:
            for piece in stream:
                if on_piece is not None:
                    on_piece(piece)
                if self._closed.is_set():
                    stream.cancel()
        return stream.reply

    def _pause_s(self) -> float:
        """Seconds until the standing prompt may be asked again."""
        rate = self._settings.max_rate_hz
        return 0.0 if rate is None else max(0.0, self._asked + 1 / rate - time.monotonic())
