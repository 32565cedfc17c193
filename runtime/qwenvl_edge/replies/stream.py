"""Stream: the text of an answer, piece by piece as it is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Literal

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.machine.forks import NotPicklable, Owner
from qwenvl_edge.replies.reply import Reply


class Thought(str):
    """A piece of the reasoning before an answer, among the pieces of a stream."""

    __slots__ = ()


class Stream(NotPicklable, Iterator[str]):
    """Iterates over pieces of an answer's clean text: whole characters, no markup; joined they are `reply.text`.

    `pieces` iterates over the reasoning before the answer too, in models that reason.

    The engine is busy from the first piece until the end, so read the stream to its end, or close it, as leaving a
    `with` block does.
    """

    def __init__(self, start: Callable[[CancelToken], Generator[str, None, Reply]]) -> None:
        self._process = Owner("the stream")
        self._cancelled = CancelToken()
        self._pieces = start(self._cancelled)
        self._started = False
        self._thoughts_too = False
        self._reply: Reply | None = None

    def __next__(self) -> str:
        if os.getpid() != self._process.pid:
            self._process.check()
        self._started = True
        while True:
            try:
                piece = next(self._pieces)
            except StopIteration as end:
                self._reply = end.value or self._reply
                raise StopIteration from None
            if piece and (self._thoughts_too or not isinstance(piece, Thought)):
                return piece

    def pieces(self) -> Iterator[tuple[Literal["thinking", "text"], str]]:
        """Iterate over the rest of reasoning and text, each piece with what it belongs to."""
        self._thoughts_too = True
        try:
            for piece in self:
                yield ("thinking", str(piece)) if isinstance(piece, Thought) else ("text", piece)
        finally:
            self._thoughts_too = False

    @property
    def reply(self) -> Reply:
        """The whole answer. Raises QwenVLError before the stream has ended."""
        if self._reply is None:
            raise QwenVLError("the answer is not complete; read the stream to its end first.")
        return self._reply

    def cancel(self) -> None:
        """Ask the answer to end before its next token; may be called from another thread or a signal handler."""
        self._cancelled.cancel()

    def finish(self) -> Reply:
        """Read the stream to its end and return the reply."""
        for _ in self:
            pass
        return self.reply

    def close(self) -> None:
        """End the answer now; the text so far becomes the reply, with finish_reason "cancelled"."""
        self.cancel()
        if not self._process.is_here:
            return
        if self._started:
            for _ in self:
                pass
        else:
            self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
