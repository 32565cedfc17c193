"""Reading the places of an answer: what a family's reader gives, as the model wrote it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Points: TypeAlias = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class GridShape:
    """A point (1 point), box (2) or quad (4) as a model writes it.

    offset: its place in the clean text. source: its markup.

    ref: number of the label that it follows, in the reader's `labels`; None if it has none.
    """

    label: str
    points: tuple[tuple[int, int], ...]
    offset: int
    source: str
    ref: int | None = None


class PlaceReader(ABC):
    """Splits an answer that arrives in pieces into clean text and the places that it names.

    shapes: points, boxes and quads so far. labels: the marked phrases so far. malformed: markup that names no place.
    calls: the bodies of the tool calls so far, which are no part of the clean text. call: the body of one under way.
    """

    calls: Sequence[str] = ()
    call: str | None = None
    shapes: list[GridShape]
    labels: list[str]
    malformed: list[str]

    @abstractmethod
    def feed(self, text: str) -> str:
        """Read a piece of the answer; return the clean text that is now certain."""

    @abstractmethod
    def mark(self, label: str) -> int:
        """Take a marked phrase verbatim, even if it looks like markup; return its length in the clean text."""

    @abstractmethod
    def begin(self) -> None:
        """Begin the answer after the end of its prompt was fed: places that end there are dropped, labels stay."""

    @abstractmethod
    def finish(self) -> str:
        """End the answer; return the rest of the clean text. Markup still open is recorded as malformed."""
