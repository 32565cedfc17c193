"""What is said: messages as structured parts, and the turns of a conversation.

Structure comes only from the message's items; the words of a text are never searched for control markup here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from qwenvl_edge.errors import PromptError
from qwenvl_edge.families.boxes import GRID
from qwenvl_edge.inputs.pictures import Picture

Message: TypeAlias = "str | Sequence[Mapping[str, Any]]"
Loader: TypeAlias = "Callable[[Any, str], Picture]"


@dataclass(frozen=True)
class Text:
    """Words."""

    text: str


@dataclass(frozen=True)
class Region:
    """A reference, boxes or quads that the user points at: grid points 0..999; `label` None for shapes without one."""

    label: str | None
    boxes: tuple[tuple[tuple[int, int], ...], ...] = ()


Part: TypeAlias = "Text | Region | Picture"


@dataclass(frozen=True)
class Turn:
    """One exchange: the user's parts and the answer with its grounding markup (None if it was never answered)."""

    user: tuple[Part, ...]
    assistant: str | None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures of this turn, in order: "Picture 1" is the first."""
        return tuple(part for part in self.user if isinstance(part, Picture))


def parse_message(message: Message, images: Iterable[Any], load: Loader) -> tuple[Part, ...]:
    """Turn a message into parts.

    Args:
        message: words, or a list of items: {"image": source}, {"text": words}, {"ref": label},
            {"box": (x1, y1, x2, y2) or a list of them, on the grid 0..999, with "ref" optional}.
        images: pictures put before the words; with a list, they fill its {"image": None} items in order.
        load: turns an image source and a name for messages into a Picture.

    Raises:
        PromptError: the message is empty, an item is unknown, or the number of pictures does not match.
        ImageError: a picture cannot be read.
    """
    sources = _image_list(images)
    if isinstance(message, str):
        items: list[Mapping[str, Any]] = [{"image": source} for source in sources]
        items += [{"text": message}] if message else []
    elif isinstance(message, Sequence) and not isinstance(message, (bytes, bytearray)):
        items = _fill_images(message, sources)
    else:
        raise PromptError(f"the message is of type {type(message).__name__}; give a string or a list of items.")
    names = iter(range(1, len(items) + 1))
    parts = tuple(_parse_item(item, lambda source: load(source, f"picture {next(names)}")) for item in items)
    if not any(not isinstance(part, Text) or part.text.strip() for part in parts):
        raise PromptError("the message is empty; give words, a picture or both.")
    return parts


def parse_history(history: Iterable[Any], load: Loader) -> tuple[Turn, ...]:
    """Accept the turns of an earlier reply, or (message, answer) pairs."""
    return tuple(_parse_turn(turn, load) for turn in history)


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
    return [{"image": next(fill)} if "image" in item and item["image"] is None else item for item in message]


def _parse_item(item: Mapping[str, Any], load: Callable[[Any], Picture]) -> Part:
    keys = set(item)
    if keys == {"image"}:
        return load(item["image"])
    if keys == {"text"}:
        return Text(_check_text(item["text"], "text"))
    if keys and keys <= {"ref", "box"}:
        label = _check_text(item["ref"], "ref") if "ref" in item else None
        return Region(label, _parse_boxes(item["box"]) if "box" in item else ())
    raise PromptError(
        f"an item of the message has the keys {sorted(map(str, keys))}; use 'image', 'text', 'ref', "
        "'box' or 'ref' with 'box'."
    )


def _parse_boxes(value: Any) -> tuple[tuple[tuple[int, int], ...], ...]:
    boxes = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if boxes and not isinstance(boxes[0], Sequence):
        boxes = [boxes]
    for box in boxes:
        numbers = isinstance(box, Sequence) and len(box) == 4 and all(isinstance(v, int) for v in box)
        if not numbers or not all(0 <= v < GRID for v in box):
            raise PromptError(f"a box is {box!r}; give four integers (x1, y1, x2, y2) on the grid 0..{GRID - 1}.")
    if not boxes:
        raise PromptError(f"a box item holds {value!r}; give (x1, y1, x2, y2) or a list of them.")
    return tuple(((x1, y1), (x2, y2)) for x1, y1, x2, y2 in boxes)


def _parse_turn(turn: Any, load: Loader) -> Turn:
    if isinstance(turn, Turn):
        return turn
    if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
        raise PromptError("history must be the history of a reply or a list of (message, answer) pairs.")
    message, answer = turn
    return Turn(parse_message(message, (), load), None if answer is None else _check_text(answer, "answer"))


def _check_text(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"a {what} of the message is of type {type(text).__name__}; give a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"a {what} of the message holds a lone surrogate (half a character) at {error.start}."
        ) from error
    return text
