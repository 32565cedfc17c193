"""A conversation in the terminal: `qwenvl chat`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from qwenvl_edge.bundle.examples import FOLDER, Examples, examples_of
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.clips import Video
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.prompt import Turn
from qwenvl_edge.inputs.video_files import open_video
from qwenvl_edge.machine.terminal import ProgressBar, harmless, say
from qwenvl_edge.replies.reply import Reply, Stats
from qwenvl_edge.replies.stream import Stream

_HELP = """\
/image FILE   add a picture to your next message
/video FILE   add a video file to it, in families that take clips
/save FILE    write the last answer's picture with its boxes
/reset        forget the conversation
/help         show this
/quit         leave (or Ctrl-D); Ctrl-C ends an answer"""


class Console:
    """Holds what a conversation needs: pictures waiting for the next message, history, the last reply.

    Answers go to stdout. Prompts and remarks go there too on a terminal, else to stderr or nowhere: whoever reads a
    pipe wants answers only.

    form: "text", as it comes, or "json", whole. with_times: after each answer, a line on stderr says how long it took.
    """

    def __init__(
        self,
        engine: QwenVLEngine,
        *,
        system: str | None,
        overrides: Mapping[str, Any],
        form: Literal["text", "json"] = "text",
        with_times: bool = False,
    ) -> None:
        self._engine = engine
        self._form = form
        self._with_times = with_times
        self._system = system
        self._overrides = overrides
        self._pictures: list[Picture] = []
        self._videos: list[Video] = []
        self._history: tuple[Turn, ...] = ()
        self._reply: Reply | None = None
        self._examples = Examples()
        self._answered = False
        self._asked = False  # about the pictures at hand
        self._typed = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))

    def add_picture(self, source: str | bytes) -> None:
        """Read a picture, a file or its bytes, now, for the next message. Raises ImageError."""
        picture = load_picture(source)
        self._begin_anew()
        self._pictures.append(picture)

    def add_video(self, path: str) -> None:
        """Decode a video file now, for the next message. Raises ImageError, and QwenVLError without PyAV."""
        bar = ProgressBar(sys.stderr)
        video = open_video(path, progress=lambda part: bar(round(100 * part), 100, "decoding the video"))
        self._begin_anew()
        self._videos.append(video)

    def _begin_anew(self) -> None:
        if self._asked:
            self._pictures, self._videos, self._asked = [], [], False

    def ask(self, message: str) -> Reply:
        """Answer one message (a base model continues it), then list the boxes."""
        self._reply = reply = self._answer(message) if self._engine.can_chat else self._completion(message)
        if self._examples.asks_afresh:
            self._asked = True
        else:
            self._history = reply.history
            self._pictures, self._videos = [], []
        if self._form == "json":
            say(json.dumps(reply.to_dict(), ensure_ascii=False))
        else:
            for line in _places(reply):
                say(harmless(line, sys.stdout))
        if self._with_times:
            say(f"qwenvl: {_times(reply.stats)}", to=sys.stderr)
        return reply

    def _answer(self, message: str) -> Reply:
        stream = self._engine.stream(
            message,
            images=self._pictures,
            video=self._videos,
            history=self._history,
            system=self._system,
            **self._overrides,
        )
        with _cancel_on_interrupt(stream):
            for kind, piece in stream.pieces():
                to = sys.stderr if kind == "thinking" else sys.stdout
                if self._form == "text":
                    say(harmless(piece, to), end="", to=to)
        if self._form == "text":
            say("")
        return stream.reply

    def _completion(self, message: str) -> Reply:
        reply = self._engine.complete(message, images=self._pictures, video=self._videos, **self._overrides)
        if self._form == "text":
            say(harmless(reply.text, sys.stdout))
        return reply

    def converse(self) -> None:
        """Read messages and commands until /quit or the end of the input.

        Where the bundle's examples say that questions are best asked afresh, each is, about the pictures named last.
        """
        self._examples = examples_of(self._engine.bundle)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # line editing and history for input()
        if self._typed:
            self._remark("Ask about your pictures; /help lists the commands.")
            if self._examples.asks_afresh:
                self._remark("This model gets each question afresh, with the same pictures until /image names others.")
        while True:
            try:
                line = _read_line("> " if self._typed else "")
            except EOFError:
                if self._typed:
                    say("")
                return
            except KeyboardInterrupt:
                self._remark("\n/quit leaves")
                continue
            if line == "/quit":
                return
            try:
                self._handle(line)
            except QwenVLError as error:
                self._remark(str(error))

    def _remark(self, text: str) -> None:
        to = sys.stdout if self._typed else sys.stderr
        say(harmless(text, to), to=to)

    def _handle(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if not line.startswith("/"):
            if line:
                if self._answered and not self._typed:
                    say("")  # between two answers, which may have several lines
                self.ask(line)
                self._answered = True
        elif command == "/image":
            self.add_picture(_file(command, argument))
            self._remark(f"{_counted(len(self._pictures), 'picture')} for your next message")
        elif command == "/video":
            self.add_video(_file(command, argument))
            self._remark(f"{_counted(len(self._videos), 'video')} for your next message")
        elif command == "/save":
            if self._reply is None:
                raise QwenVLError("there is no answer yet; ask something first.")
            self._remark(save_drawing(self._reply, Path(_file(command, argument))))
        elif command == "/reset":
            self._history, self._pictures, self._videos, self._reply = (), [], [], None
            self._asked = False
            self._remark("the conversation is forgotten")
        elif command == "/help":
            self._remark("\n".join((_HELP, *_tries(self._examples, self._engine.bundle.path / FOLDER))))
        else:
            raise QwenVLError(f"there is no command {command}; /help lists them.")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _tries(examples: Examples, folder: Path) -> Iterator[str]:
    """The lines to type to try a model, and what to know before."""
    for example in examples.examples:
        yield "\nto try it, type:"
        yield from (f"  /image {shlex.quote(str(folder / name))}" for name in example.pictures)
        yield from (f"  {question}" for question in example.questions)
    if examples.note:
        yield f"\n{examples.note}"


def _read_line(prompt: str) -> str:
    """Return the next line of the input. Raises EOFError at its end, QwenVLError where there is none."""
    if sys.stdin is None:
        raise QwenVLError("there is no input; give a PROMPT, or type in a terminal.")
    try:
        return input(prompt).strip()
    except (OSError, ValueError) as error:  # ValueError: it is not text
        reason = getattr(error, "strerror", None) or str(error)
        raise QwenVLError(f"cannot read the input: {reason}.") from None


def _file(command: str, argument: str) -> str:
    """The file that a command names, as a shell would take it: quotes, escapes, ~. Raises QwenVLError without one."""
    name = argument.strip()
    if not name:
        raise QwenVLError(f"{command} needs a file: {command} FILE.")
    with contextlib.suppress(ValueError):  # an apostrophe is no quote that was left open
        words = shlex.split(name)
        if len(words) == 1:  # several: a name with spaces that nobody quoted
            (name,) = words
    return os.path.expanduser(name)  # noqa: PTH111 - Path's fails for an unknown user and changes URLs


def save_drawing(reply: Reply, path: Path) -> str:
    """Write the reply's picture with its boxes to `path`, in the format of its suffix; say so. Raises ImageError."""
    picture = reply.draw()
    try:
        picture.save(path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that Pillow does not know
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f'cannot write "{path}": {reason}.') from error
    places = reply.boxes or reply.quads or reply.points
    return f"{path} is written" + ("" if places else ", without boxes: the answer names no place")


def _places(reply: Reply) -> Iterator[str]:
    several = len(reply.pictures) > 1
    for box in reply.boxes:
        where = f"  in picture {box.image + 1}" if several else ""
        yield f"  {box.label or 'box'}: ({box.x1:.0f}, {box.y1:.0f}) to ({box.x2:.0f}, {box.y2:.0f}){where}"
    for quad in reply.quads:
        corners = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in quad.points)
        yield f"  {quad.label or 'quad'}: {corners}" + (f"  in picture {quad.image + 1}" if several else "")
    for point in reply.points:
        where = f"  in picture {point.image + 1}" if several else ""
        yield f"  {point.label or 'point'}: ({point.x:.0f}, {point.y:.0f}){where}"
    for markup in reply.malformed:
        yield f"  not a place in a picture: {markup}"
    if reply.finish_reason != "stop":
        yield f"  (ended early: {reply.finish_reason})"


def _times(stats: Stats) -> str:
    """The times of an answer as one line."""
    parts = [f"first token after {stats.ttft_ms:.0f} ms"]
    if stats.images_encoded:
        parts.append(f"{_counted(stats.images_encoded, 'picture')} in {stats.image_ms:.0f} ms")
    kept = f" ({stats.reused_tokens} computed before)" if stats.reused_tokens else ""
    parts.append(f"prompt of {_counted(stats.prompt_tokens, 'token')}{kept} in {stats.prefill_ms:.0f} ms")
    speed = f", {stats.tokens_per_s:.1f} per second" if stats.tokens_per_s else ""
    parts.append(f"answer of {_counted(stats.new_tokens, 'token')}{speed}")
    return "; ".join(parts)


@contextlib.contextmanager
def _cancel_on_interrupt(stream: Stream) -> Iterator[None]:
    """Let Ctrl-C end the answer instead of the program; a second one interrupts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers can only be set in the main thread
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
