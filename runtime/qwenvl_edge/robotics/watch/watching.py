"""A watch: a camera's newest frame, a question about it at a pace, and lines of JSON where the answer matters."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import FrameError, QwenVLError
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.machine.systemd import notify
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.node import NodeAnswer, NodeSettings, VlmNode
from qwenvl_edge.robotics.watch.cameras import Camera, CameraFrame
from qwenvl_edge.robotics.watch.capture import Capture
from qwenvl_edge.robotics.watch.sinks import Sink

_IDLE_S = 0.5  # how often an idle watch looks round, for systemd's watchdog


@dataclass(frozen=True)
class WatchSettings:
    """Settings of a watch: what is asked, and when an answer is told.

    Attributes:
        question: asked about the newest frame.
        every_s: from one question to the next, at least; 0 asks about every frame that can be kept up with.
        on_change: tell an answer only if it differs from the one told last.
        hold: answers in a row that must agree before a change is told.
        max_age_ms: frames captured longer ago are not asked about.
        deadline_ms: ends an answer with what was said by then.
        count: end after so many answers; None goes on.
        options: the engine's options for an answer.
    """

    question: str
    every_s: float = 0.5
    on_change: bool = False
    hold: int = 1
    max_age_ms: float | None = 2000.0
    deadline_ms: float | None = None
    count: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("hold", "count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QwenVLError(f"--{name} is {value}; give at least 1.")


@dataclass
class Counts:
    """Counters of a watch: answers, lines told, frames that nobody asked about, stale frames, errors."""

    answered: int = 0
    told: int = 0
    dropped: int = 0
    stale: int = 0
    failed: int = 0


class ChangeFilter:
    """Tells a new state from a flicker: a value is the new state when it came `hold` times in a row."""

    def __init__(self, hold: int) -> None:
        self._hold = hold
        self.state: Any = None
        self._candidate: Any = None
        self._seen = 0

    def take(self, value: Any) -> bool:
        """Take the newest value; return whether it is a new state now."""
        if value == self.state:
            self._candidate, self._seen = None, 0
            return False
        if value != self._candidate:
            self._candidate, self._seen = value, 0
        self._seen += 1
        if self._seen < self._hold:
            return False
        self.state, self._candidate, self._seen = value, None, 0
        return True


class Watch:
    """Watches one camera until it is stopped, its file ends, or enough answers were given.

    Args:
        engine: answers.
        camera: the frames.
        settings: the question and its pace.
        sinks: take the lines: answers, and events of the camera.
        messages: takes what goes wrong otherwise.
    """

    def __init__(
        self, engine: QwenVLEngine, camera: Camera, settings: WatchSettings, sinks: Sequence[Sink], messages: Messages
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._sinks = sinks
        self._messages = messages
        self._node = VlmNode(
            engine,
            NodeSettings(
                prompt=settings.question,
                max_rate_hz=1 / settings.every_s if settings.every_s else None,
                max_age_ms=settings.max_age_ms,
                deadline_ms=settings.deadline_ms,
                options=settings.options,
            ),
        )
        self._capture = Capture(camera, self._put, self._tell)
        self._changes = ChangeFilter(settings.hold)
        self._wake = threading.Event()
        self._stop = CancelToken()
        self._sending = threading.Lock()  # the camera's thread tells events
        self.counts = Counts()
        self._came = 0  # frames

    def run(self) -> Counts:
        """Watch; return what was done."""
        self._capture.start()
        notify("READY=1")
        try:
            while not self._stop.cancelled and not self._enough():
                finished = self._capture.finished  # before the last look, so that its last frame is seen
                if not self._turn() and self._idle(finished):
                    break
                notify("WATCHDOG=1")
        finally:
            notify("STOPPING=1")
            self._node.close()
            self._capture.stop()
            counts = self.counts
            counts.dropped = max(self._came - counts.answered - counts.stale - counts.failed, 0)
        return self.counts

    def stop(self) -> None:
        """End `run`, and the answer under way; may be called from any thread."""
        self._stop.cancel()
        self._wake.set()

    def _enough(self) -> bool:
        return self._settings.count is not None and self.counts.answered >= self._settings.count

    def _idle(self, finished: bool) -> bool:
        """Wait for a frame or for the next question's time; return whether nothing can come any more."""
        pause_s = self._node.wait_s()
        if finished and pause_s is None:
            return True
        self._wake.wait(min(pause_s or _IDLE_S, _IDLE_S))
        self._wake.clear()
        return False

    def _turn(self) -> bool:
        """Ask if it is time; return whether something was done."""
        try:
            answer = self._node.step(cancel=self._stop)
        except FrameError:
            self.counts.stale += 1
            return True
        except QwenVLError as error:
            self.counts.failed += 1
            self._messages.log(str(error))
            return True
        if answer is None:
            return False
        self.counts.answered += 1
        if self._matters(answer.reply):
            self._send(self._line(answer))
        return True

    def _matters(self, reply: Reply) -> bool:
        """Return True if an answer is to be told. One that was cut is no change of the scene."""
        if not self._settings.on_change:
            return True
        if reply.finish_reason in ("deadline", "cancelled"):
            return False
        return self._changes.take((_plain(reply.text), sorted({_plain(box.label) for box in reply.boxes})))

    def _line(self, answer: NodeAnswer) -> dict[str, Any]:
        reply = answer.reply
        boxes = [
            {"label": box.label, **{side: round(getattr(box, side), 1) for side in ("x1", "y1", "x2", "y2")}}
            for box in reply.boxes
        ]
        return {
            "text": reply.text,
            "boxes": boxes,
            "finish_reason": reply.finish_reason,
            "frame": answer.frame.number,
            "size": list(answer.frame.picture.size),
            "latency_ms": round(answer.latency_ms, 1),
        }

    def _put(self, frame: CameraFrame) -> None:
        self._node.put_frame(frame.pixels, channel_order=frame.channel_order)
        self._came += 1
        self._wake.set()

    def _tell(self, event: str, reason: str) -> None:
        """Send an event of the camera; unusable frames go to the log only."""
        if event == "unusable":
            self._messages.log(reason)
            return
        self._send({"event": f"camera {event}", **({"reason": reason} if reason else {})})

    def _send(self, values: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "camera": self._camera.name, **values}, ensure_ascii=False)
        with self._sending:
            self.counts.told += 1
            for sink in self._sinks:
                try:
                    sink.send(line)
                except QwenVLError as error:
                    self._messages.log(str(error))


def _plain(text: str) -> str:
    """Words alone: neither their case nor the marks and spaces around them are a change."""
    return " ".join(text.casefold().split()).strip(" .!。")
