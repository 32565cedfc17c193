"""Encoded conversations -> padded tensors, and the guides that show attention where to look in them.

A row holds pictures and the conversations about them: one prefix and a segment for each conversation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qwenvl_edge.families.pieces import PictureLayout
from tools.nano.talk.composing import Encoded
from tools.nano.talk.dense import covered
from tools.nano.talk.guiding import Guide
from tools.nano.talk.packing import Packed

UNIT = 32  # rows are padded to a multiple of it
Entry = tuple[int, int, np.ndarray, np.ndarray]


def grid_of(layout: PictureLayout) -> tuple[int, int]:
    """Rows and columns of a picture's tokens; a resampler's queries lie in a square."""
    _, rows, columns = layout.grid
    side = math.isqrt(columns)
    return (side, side) if rows == 1 and side * side == columns else (rows, columns)


@dataclass
class Batch:
    """ids [B, T], positions [B, 1 or 3, T], segments [B, T] (0 the prefix, -1 padding), weights and classes [B, T].

    rows: places of the pictures' tokens in the flattened ids, [n], in the order of rows and pictures.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    weights: Tensor
    classes: Tensor
    rows: Tensor
    guides: list[Guide]

    @property
    def packed(self) -> Packed:
        """The attention's packing: the tokens that each token sees."""
        return Packed(self.segments)


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

    def guides(self, row: int, length: int) -> dict[str, list[Entry]]:
        """Return the places that attention is to find in this row, by kind."""
        found: dict[str, list[Entry]] = {"words seen": [], "patches seen": [], "places seen": []}
        picture_rows = _mask(length, [t for s, layout in self.pictures for t in range(s, s + layout.tokens)])
        segments = np.full(length, -1)
        segments[: len(self.ids)] = self.segments
        for number, (talk, start) in enumerate(zip(self.talks, self.starts, strict=True), 1):
            for token, about in enumerate(talk.about):
                if about is None or not self.pictures:
                    continue
                at = self.at(token, start) - 1  # where the token is predicted
                where, layout = self.pictures[about.picture]
                cells = {int(c) for box in about.boxes for c in covered(box, grid_of(layout))}
                found["patches seen"].append((row, at, _mask(length, [where + c for c in cells]), picture_rows))
                if about.named:
                    among = ((segments == 0) | (segments == number)) & (np.arange(length) <= at) & ~picture_rows
                    wanted = _mask(length, [self.at(name, start) for name in about.named]) & among
                    if wanted.any():
                        found["words seen"].append((row, at, wanted, among))
        for (before, layout), (after, other) in zip(self.pictures, self.pictures[1:], strict=False):
            if layout == other:
                among = _mask(length, range(before, before + layout.tokens))
                pairs = ((before + t, after + t) for t in range(layout.tokens))
                found["places seen"] += [(row, b, _mask(length, [a]), among) for a, b in pairs]
        return found


def _mask(length: int, tokens: Sequence[int] | range) -> np.ndarray:
    mask = np.zeros(length, bool)
    mask[list(tokens)] = True
    return mask


def collate(rows: Sequence[Sequence[Encoded]], pad: int) -> Batch:
    """One row for each list of conversations, padded with `pad`; without answers about places there are no guides."""
    made = [_Row(talks) for talks in rows]
    length = -(-max(len(row.ids) for row in made) // UNIT) * UNIT

    def padded(values: Sequence[float], value: float) -> list[float]:
        return [*values, *[value] * (length - len(values))]

    axes = made[0].positions[0].shape[0]
    positions = np.zeros((len(made), axes, length), np.int64)
    entries: dict[str, list[Entry]] = {}
    places: list[int] = []
    for number, row in enumerate(made):
        positions[number, :, : len(row.ids)] = np.concatenate(row.positions, axis=1)
        places += [number * length + t for start, layout in row.pictures for t in range(start, start + layout.tokens)]
        for name, found in row.guides(number, length).items():
            entries.setdefault(name, []).extend(found)
    return Batch(
        torch.tensor([padded(row.ids, pad) for row in made], dtype=torch.int64),
        torch.from_numpy(positions),
        torch.tensor([padded(row.segments, -1) for row in made], dtype=torch.int64),
        torch.tensor([padded(row.weights, 0.0) for row in made]),
        torch.tensor([padded(row.classes, 0) for row in made], dtype=torch.int64),
        torch.tensor(places, dtype=torch.int64),
        [Guide.of(name, found) for name, found in entries.items() if found],
    )
