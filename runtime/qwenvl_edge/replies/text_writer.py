"""Token ids as they are sampled -> text that can be shown: whole characters, whole tags, no stop words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from qwenvl_edge.families.base import GridShape, PlaceReader
from qwenvl_edge.inputs.prompt import Region, Text

if TYPE_CHECKING:
    from qwenvl_edge.inputs.tokenizer import Tokenizer


class AnswerWriter:
    """Turns ids into pieces of clean text; all pieces joined are `text`.

    Args:
        reader: a new one of the family's.
        stop: id sequences that end the answer and are no part of it.
        stop_strings: the same as text, markup included.
        hidden: ids that are dropped from the text.
        lead: words and regions at the end of the prompt whose markup the answer continues, such as a region with the
            label "the mug" and the words "<box>".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reader: PlaceReader,
        *,
        stop: Sequence[tuple[int, ...]],
        stop_strings: Sequence[str] = (),
        hidden: Collection[int],
        lead: Sequence[Text | Region] = (),
    ) -> None:
        self._decoder = tokenizer.incremental(stop=stop_strings)
        self._stop = stop
        self._hidden = hidden
        self._held: list[int] = []
        self._ended = False
        self._raw: list[str] = []
        self._clean = ""
        self._shown = 0
        self._reader = reader
        self._offset = sum(map(self._read_lead, lead))
        self._leading_labels = len(self._reader.labels)
        self._reader.shapes.clear()
        self._reader.malformed.clear()

    @property
    def raw_text(self) -> str:
        """The answer with its markup, surrounding white space removed."""
        return "".join(self._raw).strip()

    @property
    def text(self) -> str:
        """The answer without markup, surrounding white space removed."""
        return self._clean.strip()

    @property
    def shapes(self) -> Sequence[GridShape]:
        """Boxes and quads read so far."""
        return self._reader.shapes

    @property
    def labels(self) -> dict[int, str]:
        """The marked phrases by number: those of the answer, and those of its lead that its shapes follow."""
        followed = {shape.ref for shape in self.shapes}
        labels = enumerate(self._reader.labels)
        return {number: label for number, label in labels if number >= self._leading_labels or number in followed}

    @property
    def malformed(self) -> Sequence[str]:
        """Markup that names no place."""
        return self._reader.malformed

    def text_before(self, shape: GridShape) -> str:
        """Return the clean text up to a shape."""
        return self._clean[: max(0, shape.offset - self._offset)]

    @property
    def stopped(self) -> Literal["stop", "stop_string"] | None:
        """Kind of the stop that is complete, if any."""
        if self._decoder.stopped is not None:
            return "stop_string"
        return "stop" if self._ended else None

    def push(self, token: int) -> str:
        """Take the next id; return the text that is now certain."""
        self._held.append(token)
        for sequence in self._stop:
            if tuple(self._held[-len(sequence) :]) == sequence:
                del self._held[-len(sequence) :]
                self._ended = True
                return ""
        certain = len(self._held) - self._possible_stop_length()
        return self._release(certain)

    def finish(self) -> str:
        """End the answer; return the rest of its text."""
        piece = self._release(len(self._held))
        rest = self._decoder.finish()
        self._raw.append(rest)
        self._clean += self._reader.feed(rest) + self._reader.finish()
        return piece + self._show(len(self._clean.rstrip()))

    def _read_lead(self, part: Text | Region) -> int:
        """Read a part of the prompt's end; return how much clean text it is."""
        if isinstance(part, Text):
            return len(self._reader.feed(part.text))
        return 0 if part.label is None else self._reader.mark(part.label)

    def _possible_stop_length(self) -> int:
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = tuple(self._held[-length:])
            if any(sequence[:length] == tail for sequence in self._stop):
                return length
        return 0

    def _release(self, count: int) -> str:
        for token in self._held[:count]:
            if token not in self._hidden:
                piece = self._decoder.push(token)
                self._raw.append(piece)
                self._clean += self._reader.feed(piece)
        del self._held[:count]
        return self._show(len(self._clean.rstrip()))

    def _show(self, end: int) -> str:
        """Return the text up to `end` that was not shown yet; leading white space is never shown."""
        start = self._shown or len(self._clean) - len(self._clean.lstrip())
        if end <= start:
            return ""
        self._shown = end
        return self._clean[start:end]
