"""A replay: the frames of a topic at a pace, a question about each, and the files of the answers."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.clips import MOST_FRAMES, Video
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.machine.urls import show
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.robotics.replay.answers import AnswerFile, whole_file
from qwenvl_edge.robotics.replay.frames import FrameReader, RecordedFrame, choose_topic
from qwenvl_edge.robotics.replay.journal import Entry, Journal
from qwenvl_edge.robotics.replay.recordings import Message, Recording
from qwenvl_edge.robotics.replay.rerun import VIEWER, RerunLog, check_target
from qwenvl_edge.robotics.replay.tables import to_csv

_NS = 10**9


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of a replay: the question, how often it is asked, and where the answers go.

    Attributes:
        question: asked about every chosen frame.
        out: the MCAP file of the answers.
        topic: the frames; None takes the only topic that has some.
        every_s: seconds of the recording from one question to the next; 0 asks about every frame.
        clip_s: seconds before a frame that are shown with it as a clip; 0 shows the frame alone.
        clip_fps: frames per second of a clip.
        csv: a CSV file of the answers, or None.
        rerun: an .rrd file or a Rerun viewer's address, or None.
        with_frames: copy the frames that were asked about into `out`.
        overwrite: replace `out`.
        overrides: the engine's options for an answer; greedy unless they say otherwise.
    """

    question: str
    out: Path
    topic: str | None = None
    every_s: float = 0.0
    clip_s: float = 0.0
    clip_fps: float = 2.0
    csv: Path | None = None
    rerun: str | None = None
    with_frames: bool = False
    overwrite: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clip_s * self.clip_fps > MOST_FRAMES:
            raise QwenVLError(
                f"--clip {self.clip_s:g} at {self.clip_fps:g} frames a second is more than the {MOST_FRAMES} frames "
                "of a clip; take fewer."
            )

    @property
    def options(self) -> dict[str, Any]:
        """The engine's options: greedy, or with a seed, so that the same recording gives the same answers."""
        if not self.overrides.get("do_sample"):
            return {**self.overrides, "do_sample": False}
        return {"seed": 0, **self.overrides}


@dataclass(frozen=True)
class Progress:
    """Progress of a replay: frames asked about, and seconds of the recording against seconds of computing."""

    asked: int
    recorded_s: float
    total_s: float
    computing_s: float

    @property
    def times_realtime(self) -> float:
        """Seconds of the recording that a second of computing covers; below 1 the robot would be faster."""
        return self.recorded_s / self.computing_s if self.computing_s > 0 else 0.0


class Replay:
    """One replay of a recording. Its journal lies beside the output until that is written.

    Args:
        engine: answers.
        recording: where the frames are; the caller's to close.
        settings: the question and the outputs.
        bundle_digest: identifies the bundle: answers of another one are not gone on with.

    Raises:
        QwenVLError: the topic has no frames, the output is there already, or another replay's journal is.
    """

    def __init__(
        self, engine: QwenVLEngine, recording: Recording, settings: ReplaySettings, bundle_digest: str = ""
    ) -> None:
        self._engine = engine
        self._recording = recording
        self._settings = settings
        self._topic = choose_topic(recording, settings.topic)
        if settings.out.exists() and not settings.overwrite:
            raise QwenVLError(f"{show(str(settings.out))} is there already; give another --out, or --overwrite.")
        if settings.rerun is not None:
            check_target(settings.rerun)
        self._reader = FrameReader()
        self._about = {
            "question": settings.question,
            "recording": recording.path.name,
            "topic": self._topic.name,
            "every_s": f"{settings.every_s:g}",
            "clip_s": f"{settings.clip_s:g} at {settings.clip_fps:g} fps",
            "bundle": bundle_digest,
            "options": _options_text(settings.options),
        }
        self._journal = Journal(settings.out.with_name(f"{settings.out.name}.journal"), self._identity())

    def _identity(self) -> dict[str, Any]:
        """Everything that the answers depend on; the recording by what tells it from others without reading it."""
        recording = self._recording
        path = recording.path
        files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        sizes = [[each.name, each.stat().st_size] for each in files]
        span = [recording.start_ns, recording.end_ns, self._topic.count]
        return {"format": 1, **self._about, "files": sizes, "span": span}

    @property
    def resumed(self) -> int:
        """Answers of an earlier, interrupted run."""
        return len(self._journal.entries)

    @property
    def start_ns(self) -> int:
        """Time at which the recording begins."""
        return self._recording.start_ns

    def run(self, on_entry: Callable[[Entry, Progress], None]) -> Progress:
        """Answer, and write the files when all frames are answered.

        Args:
            on_entry: called with each answer as it comes; those of an earlier run come first.

        Raises:
            QwenVLError: a frame could not be asked about (the answers before it are kept for the next run), none of
                the frames could be read, or a file cannot be written.
        """
        done = list(self._journal.entries)
        progress = self._progress(0, 0, 0.0)
        for entry in done:
            on_entry(entry, progress)
        begun = time.monotonic()
        since_ns = done[-1].log_ns if done else self._recording.start_ns
        try:
            for entry in self._answers(skip=len(done)):
                self._journal.add(entry)
                passed = time.monotonic() - begun
                progress = self._progress(len(self._journal.entries), entry.log_ns - since_ns, passed)
                on_entry(entry, progress)
            self._write()
        finally:
            self._journal.close()
        self._journal.remove()
        return progress

    def _progress(self, asked: int, recorded_ns: int, computing_s: float) -> Progress:
        total_ns = self._recording.end_ns - self._recording.start_ns
        return Progress(asked, recorded_ns / _NS, total_ns / _NS, computing_s)

    def _answers(self, skip: int) -> Iterator[Entry]:
        """Answer about the chosen frames after the first `skip`."""
        clip = _ClipWindow(self._settings)
        chosen = 0
        for message, asked in self._messages():
            chosen += asked
            if not asked and not clip.due(message.log_ns):
                continue
            if chosen <= skip and not self._settings.clip_s:
                continue
            try:
                frame = self._reader.read(message)
                clip.add(frame)
            except ImageError as error:
                if asked and chosen > skip:
                    yield Entry.of_error(message.log_ns, error)
                continue
            if asked and chosen > skip:
                reply = self._ask(frame, clip)
                yield Entry.of_reply(frame.log_ns, frame.stamp, frame.frame_id, reply)

    def _messages(self) -> Iterator[tuple[Message, bool]]:
        """Yield the topic's messages, and whether each is to be asked about: the first in every span of every_s."""
        every_ns = round(self._settings.every_s * _NS)
        due_ns: int | None = None
        for message in self._recording.messages(self._topic.name):
            due_ns = message.log_ns if due_ns is None else due_ns
            asked = message.log_ns >= due_ns
            if asked and every_ns:
                due_ns += ((message.log_ns - due_ns) // every_ns + 1) * every_ns
            yield message, asked

    def _ask(self, frame: RecordedFrame, clip: _ClipWindow) -> Reply:
        engine, question, options = self._engine, self._settings.question, self._settings.options
        shown: dict[str, Any] = {"video": clip.video()} if self._settings.clip_s else {"images": [frame.picture]}
        if not engine.can_chat:  # a base model continues the words instead of answering them
            return engine.complete(question, **shown, **options)
        return engine.chat(question, **shown, **options)

    def _write(self) -> None:
        """Write all outputs, the MCAP file last; each is whole or absent."""
        entries, settings = self._journal.entries, self._settings
        answered = [entry for entry in entries if not entry.failed]
        if not answered:
            self._journal.remove()
            reason = entries[0].text if entries else "it has no messages."
            raise QwenVLError(f"no frame of {show(self._topic.name)} could be asked about: {reason}")
        if settings.csv is not None:
            with whole_file(settings.csv) as file:
                file.write(to_csv(entries))
        if settings.rerun is not None:
            self._write_rerun(settings.rerun)
        with whole_file(settings.out) as file:
            answers = AnswerFile(file, self._about)
            frames = self._asked_again() if settings.with_frames else ((None, entry) for entry in entries)
            for message, entry in frames:
                if entry.failed:
                    continue
                if message is not None:
                    answers.add_frame(self._topic.name, message)
                answers.add(entry)
            answers.finish()

    def _asked_again(self) -> Iterator[tuple[Message, Entry]]:
        """Yield the messages that were asked about once more, each with its entry."""
        entries = iter(self._journal.entries)
        return ((message, next(entries)) for message, asked in self._messages() if asked)

    def _write_rerun(self, target: str) -> None:
        def log_to(where: str) -> None:
            log = RerunLog(where, f"{self._recording.path.name} {self._topic.name} {self._settings.question}")
            for message, entry in self._asked_again():
                if not entry.failed:
                    log.add(self._reader.read(message), entry)
            log.close()

        if target.startswith(VIEWER):
            log_to(target)
            return
        path = Path(target)
        part = path.with_name(f"{path.name}.part")
        try:
            log_to(str(part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


class _ClipWindow:
    """The frames of the last seconds, as a clip: clip_fps of them a second, the newest always among them."""

    def __init__(self, settings: ReplaySettings) -> None:
        self._span_ns = round(settings.clip_s * _NS)
        self._step_ns = round(0.9 * _NS / settings.clip_fps)  # cameras are never on time
        self._kept: deque[tuple[int, Picture]] = deque()

    def due(self, log_ns: int) -> bool:
        """Return whether a frame of that time is to be kept."""
        return self._span_ns > 0 and (not self._kept or log_ns - self._kept[-1][0] >= self._step_ns)

    def add(self, frame: RecordedFrame) -> None:
        """Keep a frame, and drop those that are too old."""
        if not self._span_ns or (self._kept and frame.log_ns <= self._kept[-1][0]):
            return
        self._kept.append((frame.log_ns, frame.picture))
        while frame.log_ns - self._kept[0][0] > self._span_ns:
            self._kept.popleft()

    def video(self) -> Video:
        """Return the frames as a clip."""
        first = self._kept[0][0]
        return Video([picture for _, picture in self._kept], times=[(at - first) / _NS for at, _ in self._kept])


def _options_text(options: dict[str, Any]) -> str:
    """The options as text; a constraint by its kind and source."""
    parts = {name: getattr(value, "source", value) for name, value in options.items()}
    return ", ".join(f"{name}={parts[name]!r}" for name in sorted(parts))


def digest_of(bundle: Path) -> str:
    """Return SHA-256 of a bundle's manifest, which names the digests of its files."""
    from qwenvl_edge.bundle.manifest import MANIFEST_NAME

    return hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()
