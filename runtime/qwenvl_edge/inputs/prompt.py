"""Prompts: messages and turns -> parts -> token ids, to the token as the published code builds them.

Security differs from the published code on purpose: words of a user are never control tokens. In a chat, structure
comes from the message's items alone, and the words of a text are never searched for control markup; a raw prompt's text
may hold grounding markup, but never pictures or control tokens of turns. An assistant's earlier answers keep their
grounding markup, which the model wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qwenvl_edge.errors import ContextError, PromptError
from qwenvl_edge.families.base import Family, Positions
from qwenvl_edge.families.pieces import NO_LIMITS, Marked, PictureLayout, Piece, PixelLimits, Rows, Shown, Span
from qwenvl_edge.inputs.clips import Clip, Visual, load_clip
from qwenvl_edge.inputs.options import pixel_limits
from qwenvl_edge.inputs.parts import Part, Region, Text, ToolResult, parse_boxes
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.inputs.tokenizer import EncodedTexts, Tokenizer

Message: TypeAlias = "str | Sequence[Mapping[str, Any]]"
Loader: TypeAlias = "Callable[[Any, str], Picture]"

_HISTORY = "give the history of a reply, or a list of (message, answer) pairs"
_LIMITS = ("min_pixels", "max_pixels")


@dataclass(frozen=True)
class Turn:
    """One exchange: the user's parts and the answer with its grounding markup (None if it was never answered).

    user: empty where the assistant spoke first.
    """

    user: tuple[Part, ...]
    assistant: str | None

    @property
    def pictures(self) -> tuple[Visual, ...]:
        """The pictures and clips of this turn, in order: "Picture 1" is the first picture."""
        return visuals_of(self.user)


def visuals_of(parts: Iterable[Part]) -> tuple[Visual, ...]:
    """Return the pictures and clips among parts."""
    return tuple(part for part in parts if isinstance(part, (Picture, Clip)))


def parse_message(
    message: Message,
    images: Iterable[Any],
    load: Loader,
    *,
    videos: Iterable[Any] = (),
    limits: PixelLimits = NO_LIMITS,
) -> tuple[Part, ...]:
    """Turn a message into parts.

    Args:
        message: words, or a list of items: {"image": source}, {"video": Video}, either with "min_pixels" and
            "max_pixels" of its own; {"text": words}; {"tool_result": words}; {"ref": label}; {"box": (x1, y1, x2, y2)
            or a list of them, on the grid 0..999, with "ref" optional}.
        images: pictures put before the words; with a list, they fill its {"image": None} items in order.
        load: turns an image source and a name for messages into a Picture.
        videos: clips put before the words, after the pictures.
        limits: those of pictures and clips that have none of their own.

    Raises:
        PromptError: the message is empty, an item is unknown, or the number of pictures does not match.
        ImageError: a picture cannot be read.
    """
    sources = _image_list(images)
    shown: list[Mapping[str, Any]] = [{"video": video} for video in videos]
    if isinstance(message, str):
        check_text(message, "a text of the message")
        items: list[Mapping[str, Any]] = [*({"image": source} for source in sources), *shown]
        items += [{"text": message}] if message else []
    elif isinstance(message, Sequence) and not isinstance(message, (bytes, bytearray)):
        items = [*shown, *_fill_images(message, sources)]
    else:
        raise PromptError(f"the message is of type {type(message).__name__}; give a string or a list of items.")
    names = iter(range(1, len(items) + 1))
    parts = tuple(_parse_item(item, _Visuals(load, names, limits)) for item in items)
    if not any(not isinstance(part, Text) or part.text.strip() for part in parts):
        raise PromptError("the message is empty; give words, a picture or both.")
    return parts


def parse_history(history: Iterable[Any] | None, load: Loader, limits: PixelLimits = NO_LIMITS) -> tuple[Turn, ...]:
    """Accept the turns of an earlier reply, or (message, answer) pairs; message None: the assistant spoke first.

    None is a new conversation. limits: those of the pictures of pairs.
    """
    if history is None:
        return ()
    if isinstance(history, (str, bytes, Mapping)) or not isinstance(history, Iterable):
        raise PromptError(f"history is of type {type(history).__name__}; {_HISTORY}.")
    return tuple(_parse_turn(turn, load, limits) for turn in history)


def _image_list(images: Iterable[Any]) -> list[Any]:
    single = isinstance(images, (str, bytes, bytearray, Mapping, Picture)) or getattr(images, "ndim", 4) != 4
    if single or not isinstance(images, Iterable):
        raise PromptError("images must be a list of pictures; put a single one in brackets.")
    return list(images)


def _fill_images(message: Sequence[Any], sources: list[Any]) -> list[Mapping[str, Any]]:
    for item in message:
        if not isinstance(item, Mapping):
            raise PromptError(f"an item of the message is of type {type(item).__name__}; use {{'text': ..}}.")
    gaps = sum("image" in item and item["image"] is None for item in message)
    if gaps != len(sources):
        raise PromptError(
            f"the message has {gaps} places for pictures ({{'image': None}}) but images holds {len(sources)}: "
            "make them match."
        )
    fill = iter(sources)
    return [{**item, "image": next(fill)} if "image" in item and item["image"] is None else item for item in message]


@dataclass(frozen=True)
class _Visuals:
    """Loads pictures and clips of a message, which are numbered in its errors."""

    load: Loader
    numbers: Iterator[int]
    limits: PixelLimits

    def picture(self, item: Mapping[str, Any]) -> Picture:
        picture = self.load(item["image"], f"picture {next(self.numbers)}")
        return picture.within(over(self._limits(item), picture.limits))

    def clip(self, item: Mapping[str, Any]) -> Clip:
        return load_clip(item["video"], self.load, f"clip {next(self.numbers)}", self._limits(item))

    def _limits(self, item: Mapping[str, Any]) -> PixelLimits:
        return over(pixel_limits(item.get("min_pixels"), item.get("max_pixels")), self.limits)


def over(limits: PixelLimits, other: PixelLimits) -> PixelLimits:
    """Return limits, and `other`'s where they leave the choice."""
    return PixelLimits(
        other.min_pixels if limits.min_pixels is None else limits.min_pixels,
        other.max_pixels if limits.max_pixels is None else limits.max_pixels,
    )


def _parse_item(item: Mapping[str, Any], visuals: _Visuals) -> Part:
    keys = set(item)
    if "image" in keys and keys <= {"image", *_LIMITS}:
        return visuals.picture(item)
    if "video" in keys and keys <= {"video", *_LIMITS}:
        return visuals.clip(item)
    if keys == {"tool_result"}:
        return ToolResult(check_text(item["tool_result"], "a tool_result of the message"))
    if keys == {"text"}:
        return Text(check_text(item["text"], "a text of the message"))
    if keys and keys <= {"ref", "box"}:
        label = check_text(item["ref"], "a ref of the message") if "ref" in item else None
        return Region(label, parse_boxes(item["box"]) if "box" in item else ())
    raise PromptError(
        f"an item of the message has the keys {sorted(map(str, keys))}; use 'image', 'video', 'text', 'ref', "
        "'box' or 'ref' with 'box'."
    )


def _parse_turn(turn: Any, load: Loader, limits: PixelLimits) -> Turn:
    if isinstance(turn, Turn):
        return turn
    if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
        raise PromptError(f"history holds a {type(turn).__name__}; {_HISTORY}.")
    message, answer = turn
    said = None if answer is None else check_text(answer, "an answer of the history")
    return Turn((), said) if message is None and said else Turn(parse_message(message, (), load, limits=limits), said)


def check_text(text: Any, what: str) -> str:
    """Return the words if they can be encoded. Raises PromptError, which calls them `what`."""
    if not isinstance(text, str):
        raise PromptError(f"{what} is of type {type(text).__name__}; give a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{what} holds a lone surrogate (half a character) at {error.start}.") from error
    return text


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [T]; features replace the rows of `spans`, which name their pictures and clips by number.

    turns: how many turns of the history were kept. positions: those of the prompt and of the tokens after it. salt:
    what is computed for a prompt is used again for prompts with the same one only.
    """

    ids: npt.NDArray[np.int64] = field(repr=False)
    pictures: tuple[Visual, ...]
    spans: tuple[Span, ...]
    turns: int
    positions: Positions = field(repr=False)
    salt: str = ""


@dataclass
class _Chunk:
    """A run of ids with its pictures and their spans, both counted from the chunk's beginning."""

    ids: list[int] = field(default_factory=list)
    pictures: list[Visual] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def append(self, other: _Chunk) -> None:
        """Add a chunk at the end."""
        start, first = len(self.ids), len(self.pictures)
        self.spans += [replace(s, start=start + s.start, picture=first + s.picture) for s in other.spans]
        self.ids += other.ids
        self.pictures += other.pictures


class PromptBuilder:
    """Builds prompts for one family and tokenizer.

    numbered: pictures get numbers ("Picture 1: ") also in a family that gives none unless asked.
    """

    def __init__(self, family: Family, tokenizer: Tokenizer, *, numbered: bool = False) -> None:
        self._family = family
        self._numbered = numbered
        self._texts = EncodedTexts(tokenizer)

    def chat(
        self,
        message: Sequence[Part],
        *,
        history: Sequence[Turn] = (),
        system: str | None,
        tools: Sequence[str] = (),
        window: int,
        limit: int | None = None,
        longest: int | None = None,
    ) -> Prompt:
        """Build a conversation's prompt that ends where the assistant's answer begins.

        Whole turns of the history are kept, newest first, while system and kept turns stay below `window` tokens (the
        published make_context; the new message is not counted), and the prompt below `limit`, if one is given. The
        first turn that does not fit ends the walk. Texts that cannot have `longest` tokens are not encoded.

        Raises:
            ContextError: such a text is no part of the history.
        """
        before = [Counter(map(type, turn.pictures)) for turn in history]
        shown = sum(before, Counter())
        question = self._chunk(self._family.question(self._content(message, shown)), message, longest)
        if limit is not None:
            window = min(window, limit - len(question.ids))
        prompt = self._chunk(self._family.system_turn(system, tools), (), longest)
        kept: list[_Chunk] = []
        length = len(prompt.ids)
        for turn, own in zip(reversed(history), reversed(before), strict=True):
            shown = shown - own
            user = self._content(turn.user, shown) if turn.user else []
            try:
                chunk = self._chunk(self._family.past_turn(user, turn.assistant), turn.user, longest)
            except ContextError:
                break
            length += len(chunk.ids)
            if length >= window:
                break
            kept.append(chunk)
        for chunk in (*reversed(kept), question):
            prompt.append(chunk)
        return self._prompt(prompt, len(kept))

    def raw(self, parts: Sequence[Part], longest: int | None = None) -> Prompt:
        """Build a prompt without a chat template; texts may hold grounding markup. longest: as in chat."""
        return self._prompt(self._chunk(self._content(parts, Counter(), words_as=Marked), parts, longest), 0)

    def _content(
        self, parts: Sequence[Part], before: Mapping[type, int], words_as: type[str] | type[Marked] = str
    ) -> list[Piece]:
        """Return the pieces of a message; words that touch are one piece, as the published code joins strings.

        before: pictures and clips of earlier turns.
        """
        pieces: list[Piece] = []
        words, visuals = "", _Numbering(self._family, before, numbered=self._numbered)
        for before_part, part in zip((None, *parts), parts, strict=False):
            if isinstance(part, Text):
                words += part.text
                continue
            if isinstance(part, ToolResult):
                words += "\n" if isinstance(before_part, ToolResult) else ""
                inner = list(self._family.tool_result(part.text))
            elif isinstance(part, Region):
                inner = list(self._family.region(part.label, part.boxes, visuals.layout))
            else:
                inner = list(self._family.picture(visuals.next(part)))
            first, last = inner[0] if inner else "", inner[-1] if len(inner) > 1 else ""
            words += first if isinstance(first, str) else ""
            middle = inner[isinstance(first, str) : len(inner) - (isinstance(last, str) and len(inner) > 1)]
            if middle:
                pieces += [words_as(words), *middle]
                words = ""
            words += last if isinstance(last, str) else ""
        return [*pieces, words_as(words)]

    def _chunk(self, pieces: Iterable[Piece], parts: Sequence[Part], longest: int | None = None) -> _Chunk:
        """Encode pieces; parts: those whose pictures the rows among the pieces name. longest: as in chat."""
        chunk = _Chunk(pictures=list(visuals_of(parts)))
        for piece in pieces:
            if longest is not None and isinstance(piece, (str, Marked)):
                self._texts.check_length(piece if isinstance(piece, str) else piece.text, longest)
            if isinstance(piece, str):
                chunk.ids += self._texts.encode(piece)
            elif isinstance(piece, Marked):
                chunk.ids += self._texts.encode(piece.text, allowed_special=self._family.markup_tags)
            elif isinstance(piece, Rows):
                chunk.spans.append(Span(len(chunk.ids), piece.count, piece.picture, piece.layout, piece.first))
                chunk.ids += [piece.id] * piece.count
            else:
                chunk.ids.append(piece)
        return chunk

    def _prompt(self, chunk: _Chunk, turns: int) -> Prompt:
        spans = tuple(chunk.spans)
        positions = self._family.positions(len(chunk.ids), spans)
        return Prompt(np.asarray(chunk.ids, dtype=np.int64), tuple(chunk.pictures), spans, turns, positions)


class _Numbering:
    """Numbers the pictures and clips of a turn; layout: that of the one before, None before the first."""

    def __init__(self, family: Family, before: Mapping[type, int], *, numbered: bool) -> None:
        self._family = family
        self._before = before
        self._numbered = numbered
        self._seen: Counter[type] = Counter()
        self.layout: PictureLayout | None = None

    def next(self, part: Visual) -> Shown:
        """Return the next picture or clip as the family is to show it."""
        kind = type(part)
        picture = self._seen.total()
        self._seen[kind] += 1
        number = self._seen[kind]
        self.layout = part.layout(self._family)
        overall = self._before.get(kind, 0) + number if self._numbered else 0
        times = part.times if isinstance(part, Clip) else ()
        return Shown(picture, number, overall, self.layout, times)
