"""Pieces of a prompt: words, control tokens, and the rows that features of pictures take; sizes of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class PixelLimits:
    """Least and most pixels of a picture after resizing; None leaves the choice to the bundle."""

    min_pixels: int | None = None
    max_pixels: int | None = None


NO_LIMITS = PixelLimits()


@dataclass(frozen=True)
class PictureLayout:
    """The room that a picture or clip takes in a prompt: `tokens` rows, which lie as `grid` (frames, rows, columns).

    Together with the pixels it says what is encoded. seconds: from one frame of the grid to the next, 0.0 where the
    family's positions do not depend on it.
    """

    tokens: int
    grid: tuple[int, int, int]
    seconds: float = 0.0


@dataclass(frozen=True)
class Span:
    """Feature rows in a prompt: `length` ids from `start` on stand for picture number `picture` of the prompt, from 0.

    A clip may have several spans with one number; `first` is the row of its features with which the span begins.
    """

    start: int
    length: int
    picture: int
    layout: PictureLayout
    first: int = 0


@dataclass(frozen=True)
class Marked:
    """Words whose grounding markup becomes control tokens: those that a model wrote."""

    text: str


@dataclass(frozen=True)
class Rows:
    """The place of `count` feature rows, from `first` on, of picture number `picture` of a turn; `id` fills it."""

    picture: int
    layout: PictureLayout
    first: int
    count: int
    id: int


@dataclass(frozen=True)
class Shown:
    """A picture or clip of a turn, as a family is asked to put it into a prompt.

    picture: its number among pictures and clips of the turn, from 0. number: among its kind in the turn, from 1.
    overall: among its kind in the conversation, from 1; 0 if it is not to be numbered. times: seconds of a clip's
    frames; none in a picture.
    """

    picture: int
    number: int
    overall: int
    layout: PictureLayout
    times: tuple[float, ...] = ()


Piece: TypeAlias = "str | Marked | int | Rows"
"""Part of a turn: words (encoded apart from the piece before, control tokens in them stay text), the id of a control
token, or a picture's place."""


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Join words that touch, so that they are encoded as one text; words of a model keep their markup."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, str) and isinstance(last, str):
            result[-1] = last + piece
        elif isinstance(piece, Marked) and isinstance(last, str):
            result[-1] = Marked(last + piece.text)
        elif piece != "":
            result.append(piece)
    return result
