"""Encoded conversations -> tensors, and the guides that show attention where to look in them.

A row holds pictures and the conversations about them: one prefix and a segment for each conversation. Rows of any
length lie one after the other; what is padded is the end of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl_edge.families.pieces import PictureLayout
from tools.nano.talk.composing import Encoded
from tools.nano.talk.dense import covered
from tools.nano.talk.guiding import SEATS, Guide
from tools.nano.talk.packing import Packed

UNIT = 256  # a batch is padded to a multiple of it: oneDNN makes code for every new shape of a product
Entry = tuple[int, np.ndarray, np.ndarray]  # a token of a row, and masks over the row: wanted, and those that count


def grid_of(layout: PictureLayout) -> tuple[int, int]:
    """Rows and columns of a picture's tokens; a resampler's queries lie in a square."""
    _, rows, columns = layout.grid
    side = math.isqrt(columns)
    return (side, side) if rows == 1 and side * side == columns else (rows, columns)


@dataclass
class Batch:
    """Rows one after the other: ids, weights and classes [T], positions [1 or 3, T].

    segments: of each row the segment of its tokens [length], 0 the prefix. pictures: places of the pictures' tokens
    [n], in the order of rows and pictures.
    """

    ids: Tensor
    positions: Tensor
    segments: list[np.ndarray]
    weights: Tensor
    classes: Tensor
    pictures: Tensor
    guides: list[Guide]

    @property
    def packed(self) -> Packed:
        """The attention's packing: the tokens that each token sees."""
        return Packed(self.segments, len(self.ids))


@dataclass
class _Row:
    """One row while it is put together; pictures: first token and layout of each."""

    talks: Sequence[Encoded]

    def __post_init__(self) -> None:
        prefix = self.talks[0].prefix
        first = self.talks[0]
        assert all(talk.ids[: talk.prefix] == first.ids[:prefix] and talk.prefix == prefix for talk in self.talks)
        self.ids = first.ids[:prefix]
        self.positions = [first.positions[:, :prefix]]
        self.segments, self.weights, self.classes = [0] * prefix, [0.0] * prefix, [0] * prefix
        self.starts: list[int] = []
        self.pictures = [(span.start, span.layout) for span in first.spans if span.start < prefix]
        for number, talk in enumerate(self.talks, 1):
            self.starts.append(len(self.ids) - prefix)
            self.pictures += [(len(self.ids) + s.start, s.layout) for s in talk.spans if s.start >= prefix]
            self.ids = self.ids + talk.ids[prefix:]
            self.positions.append(talk.positions[:, prefix:])
            self.segments += [number] * (len(talk.ids) - prefix)
            self.weights += talk.weights[prefix:]
            self.classes += talk.classes[prefix:]

    def at(self, token: int, start: int) -> int:
        """The place in the row of a conversation's token."""
        return token if token < self.talks[0].prefix else token + start

    def guides(self) -> dict[str, list[Entry]]:
        """Return the places that attention is to find in this row, by kind."""
        length = len(self.ids)
        found: dict[str, list[Entry]] = {name: [] for name in SEATS}
        shown = _mask(length, [t for s, layout in self.pictures for t in range(s, s + layout.tokens)])
        segments = np.array(self.segments)
        for number, (talk, start) in enumerate(zip(self.talks, self.starts, strict=True), 1):
            for token, about in enumerate(talk.about):
                if about is None or not self.pictures:
                    continue
                at = self.at(token, start) - 1  # where the token is predicted
                where, layout = self.pictures[about.picture]
                cells = {int(c) for box in about.boxes for c in covered(box, grid_of(layout))}
                found["patches seen"].append((at, _mask(length, [where + c for c in cells]), shown))
                if about.named:
                    among = ((segments == 0) | (segments == number)) & (np.arange(length) <= at) & ~shown
                    wanted = _mask(length, [self.at(name, start) for name in about.named]) & among
                    if wanted.any():
                        found["words seen"].append((at, wanted, among))
        for (before, layout), (after, other) in zip(self.pictures, self.pictures[1:], strict=False):
            if layout == other:
                among = _mask(length, range(before, before + layout.tokens))
                pairs = ((before + t, after + t) for t in range(layout.tokens))
                found["places seen"] += [(b, _mask(length, [a]), among) for a, b in pairs]
        return found


def _mask(length: int, tokens: Sequence[int] | range) -> np.ndarray:
    mask = np.zeros(length, bool)
    mask[list(tokens)] = True
    return mask


def collate(rows: Sequence[Sequence[Encoded]]) -> Batch:
    """One row for each list of conversations; without answers about places there are no guides."""
    made = [_Row(talks) for talks in rows]
    lengths = [len(row.ids) for row in made]
    padding = -sum(lengths) % UNIT
    guides = [row.guides() for row in made]
    positions = np.concatenate([part for row in made for part in row.positions], axis=1)
    places = [
        at + start + token
        for at, row in zip(np.cumsum([0, *lengths[:-1]]), made, strict=True)
        for start, layout in row.pictures
        for token in range(layout.tokens)
    ]

    def joined(name: str, dtype: torch.dtype) -> Tensor:
        values = torch.tensor([value for row in made for value in getattr(row, name)], dtype=dtype)
        return F.pad(values, (0, padding))

    return Batch(
        joined("ids", torch.int64),
        torch.from_numpy(np.pad(positions, ((0, 0), (0, padding)))),
        [np.array(row.segments) for row in made],
        joined("weights", torch.float32),
        joined("classes", torch.int64),
        torch.tensor(places, dtype=torch.int64),
        [Guide.of(name, [g[name] for g in guides], lengths) for name in SEATS if any(g[name] for g in guides)],
    )
