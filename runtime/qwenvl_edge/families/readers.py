"""Reading the places of an answer: what a family's reader gives, as the model wrote it."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

Points: TypeAlias = Sequence[tuple[int, int]]
_NUMBER = re.compile(r"(?<![\w.+-])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


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


def finite(number: str) -> float:
    """Return the nearest number that JSON can be written with; 1e999 is in its grammar, too."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(number)))


class WrittenNumbers:
    """The numbers of an answer, some of them replaced."""

    def __init__(self, text: str) -> None:
        self._text = text
        found = list(_NUMBER.finditer(text))
        self._starts = [number.start() for number in found]
        self._values: list[int | None] = [round(finite(number.group())) for number in found]
        self._new: dict[int, int] = {}
        self._source = self._next = 0  # where the last one was found, and the number after its own

    def replace(self, source: str, old: Sequence[int], new: Sequence[int]) -> None:
        """Replace the first numbers in a row that are, rounded, `old` in a source; sources come in their order."""
        start = self._text.find(source, self._source)
        while start >= 0:
            first = bisect_left(self._starts, start)
            end = bisect_left(self._starts, start + len(source)) - len(old) + 1
            # A source may name several places, mostly one after the other.
            for at in chain(range(max(first, self._next), end), range(first, min(end, self._next))):
                if self._values[at : at + len(old)] == old:
                    self._new |= zip(self._starts[at : at + len(old)], new, strict=True)
                    self._values[at : at + len(old)] = [None] * len(old)
                    self._source, self._next = start, at + len(old)
                    return
            start = self._text.find(source, start + 1)

    def text(self) -> str:
        """Return the text."""
        return _NUMBER.sub(lambda found: str(self._new.get(found.start(), found.group())), self._text)
