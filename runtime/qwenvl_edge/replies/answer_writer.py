"""Token ids as they are sampled -> text that can be shown -> the reply.

The text has whole characters, whole tags and no stop words; the reply has its places in the pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal

from qwenvl_edge.families.base import Family
from qwenvl_edge.families.boxes import WrittenNumbers, boxes_of, corners, place, points_of, quads_of, refs_of
from qwenvl_edge.families.places import Place
from qwenvl_edge.families.readers import GridShape, PlaceReader, Points
from qwenvl_edge.families.tools import CallPiece, CallPieces, read_call
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.inputs.parts import Region, Text
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.inputs.prompt import Turn
from qwenvl_edge.inputs.request import Request
from qwenvl_edge.replies.reply import FinishReason, Reply, Stats, TokenLogprob

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
        thinking_end: the id that ends the reasoning with which the answer begins; None if it begins at once.
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
        thinking_end: int | None = None,
    ) -> None:
        self._thinking_end = thinking_end
        self._thinker = None if thinking_end is None else tokenizer.incremental()
        self._thoughts: list[str] = []
        self.thinking_tokens = 0
        self._thoughts_told = 0
        self._call_pieces: CallPieces | None = None
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
        self._reader.begin()

    @property
    def raw_text(self) -> str:
        """The answer with its markup, surrounding white space removed."""
        return "".join(self._raw).strip()

    @property
    def text(self) -> str:
        """The answer without markup, surrounding white space removed."""
        return self._clean.strip()

    @property
    def thinking(self) -> str | None:
        """The reasoning before the answer, surrounding white space removed; None in a model without."""
        return None if self._thinking_end is None else "".join(self._thoughts).strip()

    def take_thought(self) -> str:
        """Return the reasoning that became certain since the last call."""
        new = "".join(self._thoughts[self._thoughts_told :])
        self._thoughts_told = len(self._thoughts)
        return new

    def take_calls(self) -> list[CallPiece]:
        """Return what came of the calls of tools since the last call."""
        if self._call_pieces is None:
            self._call_pieces = CallPieces()
        return self._call_pieces.take(self._reader.calls, self._reader.call)

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
    def calls(self) -> Sequence[str]:
        """The bodies of the tool calls so far."""
        return self._reader.calls

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
        if self._thinker is not None:
            return self._think(token)
        certain = len(self._held) - self._possible_stop_length()
        return self._release(certain)

    def _think(self, token: int) -> str:
        """Take an id of the reasoning, which no stop but a whole sequence ends."""
        self._held.clear()
        if self._thinker is None:
            return ""
        self.thinking_tokens += 1
        if token == self._thinking_end:
            self._thoughts.append(self._thinker.finish())
            self._thinker = None
        elif token not in self._hidden:
            self._thoughts.append(self._thinker.push(token))
        return ""

    def finish(self) -> str:
        """End the answer; return the rest of its text."""
        if self._thinker is not None:
            self._thoughts.append(self._thinker.finish())
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


def make_reply(
    family: Family,
    request: Request,
    writer: AnswerWriter,
    *,
    reason: FinishReason,
    complete: bool | None,
    stats: Stats,
    logprobs: tuple[TokenLogprob, ...] | None,
) -> Reply:
    """Build the reply to a request from its finished writer: places put into their pictures, history continued."""
    turns = (*request.history, Turn(request.message, writer.raw_text))
    pictures, earlier = _subject(turns, within=request.prompt.turns + 1)
    malformed = list(writer.malformed)
    shapes = list(writer.shapes)
    if not pictures:
        malformed += [shape.source for shape in shapes]
        shapes = []
    names = _Names(family, pictures, earlier)
    asked = names.only("\n".join(part.text for part in request.message if isinstance(part, Text)))
    images = [names.last(writer.text_before(shape), asked) for shape in shapes]
    calls = [(body, read_call(body)) for body in writer.calls]
    malformed += [body for body, call in calls if call is None]
    places = place(shapes, images, [_scale(family, picture) for picture in pictures])
    return Reply(
        text=writer.text,
        raw_text=writer.raw_text,
        boxes=boxes_of(places),
        quads=quads_of(places),
        points=points_of(places),
        tool_calls=tuple(call for _, call in calls if call is not None),
        thinking=writer.thinking,
        refs=refs_of(writer.labels, shapes, places),
        malformed=tuple(malformed),
        pictures=pictures,
        history=turns if request.is_chat else (),
        finish_reason=reason,
        stats=stats,
        complete=complete,
        pixel_text=_pixel_text(writer.raw_text, shapes, places),
        logprobs=logprobs,
    )


def _subject(turns: tuple[Turn, ...], within: int) -> tuple[tuple[Visual, ...], tuple[Turn, ...]]:
    """Return the pictures of the latest turn that has some, of the last `within` turns, and the turns before it."""
    for number in range(len(turns) - 1, len(turns) - within - 1, -1):
        if turns[number].pictures:
            return turns[number].pictures, turns[:number]
    return (), ()


def _pixel_text(raw_text: str, shapes: Sequence[GridShape], places: Sequence[Place]) -> str:
    """Return `raw_text` with the numbers of each shape's markup replaced by its pixels, rounded.

    Args:
        raw_text: the answer as the model wrote it.
        shapes: those that it names, in order; `source` is the markup of each.
        places: the same in pixels.
    """
    written = WrittenNumbers(raw_text)
    for shape, placed in zip(shapes, places, strict=True):
        values = [round(value) for point in corners(placed) for value in point]
        written.replace(shape.source, [value for point in shape.points for value in point], values)
    return written.text()


class _Names:
    """Finds the pictures of a turn by the numbers that words give them.

    earlier: the turns before it, whose pictures come first where a family numbers over the conversation.
    """

    def __init__(self, family: Family, pictures: Sequence[Visual], earlier: Sequence[Turn]) -> None:
        self._family = family
        own = [index for index, picture in enumerate(pictures) if isinstance(picture, Picture)]
        shown = 0 if family.numbers_pictures else sum(len(_only_pictures(turn.pictures)) for turn in earlier)
        self._index = {shown + number: index for number, index in enumerate(own, 1)}
        self._otherwise = len(pictures) - 1

    def only(self, text: str) -> int:
        """Return the index of the one picture that a text names, else of the last one."""
        named = set(self._family.named_pictures(text))
        return self._index.get(named.pop(), self._otherwise) if len(named) == 1 else self._otherwise

    def last(self, text: str, otherwise: int) -> int:
        """Return the index of the picture that a text named last, or `otherwise`."""
        named = self._family.named_pictures(text)
        return self._index.get(named[-1], otherwise) if named else otherwise


def _only_pictures(visuals: Sequence[Visual]) -> list[Visual]:
    return [visual for visual in visuals if isinstance(visual, Picture)]


def _scale(family: Family, picture: Visual) -> Callable[[Points], tuple[tuple[float, float], ...]]:
    return functools.partial(family.to_pixels, size=picture.size, layout=picture.layout(family))
