"""Sequences -> padded tensors, and the guides that show attention where to look in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.nano.dense import GRID
from tools.nano.focus import NUMBERS, PATCHES, PLACES, WORDS, Guide
from tools.nano.sequences import Composer, Sequence

Entries = dict[int, list[tuple[int, int, np.ndarray, np.ndarray]]]


@dataclass
class Batch:
    """Padded sequences: ids, positions, segments [B, T] (segment -1 = padding), weights and classes [B, T]; the guides
    of attention; differences: where compared patches are, rows and tokens [n], and their classes [n].
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    weights: Tensor
    classes: Tensor
    guides: list[Guide]
    differences: tuple[Tensor, Tensor, Tensor]

    @property
    def mask(self) -> Tensor:
        """[B, 1, T, T], true where a token may look: back, at the prefix or its own segment."""
        mine, other = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((other == 0) | (other == mine)).tril()
        return (seen | torch.eye(self.ids.shape[1], dtype=torch.bool))[:, None]


def _at(length: int, tokens: np.ndarray | int) -> np.ndarray:
    mask = np.zeros(length, bool)
    mask[tokens] = True
    return mask


def _guide_pictures(entries: Entries, row: int, cells: np.ndarray, number: int, length: int) -> None:
    """Guide patches, tokens `cells` [pictures, patches], to their picture's number and to the same place before."""
    words = ~_at(length, cells.ravel())
    for n, tokens in enumerate(cells):
        its_number = _at(length, tokens[0] - number)[None]
        before = words & (np.arange(length) < tokens[0])
        entries[NUMBERS] += [(row, int(token), its_number, before) for token in tokens]
        if n:
            previous = _at(length, cells[n - 1])
            pairs = zip(tokens, cells[n - 1], strict=True)
            entries[PLACES] += [(row, int(token), _at(length, same)[None], previous) for token, same in pairs]


def _guide_answers(
    entries: Entries, row: int, sequence: Sequence, cells: np.ndarray, composer: Composer, length: int
) -> None:
    """Guide answers to the words that name a thing, colour and kind, and to the patches that show it."""
    segments = np.full(length, -1)
    segments[: len(sequence.ids)] = sequence.segments
    patches = _at(length, cells.ravel())
    names = [_at(length, np.flatnonzero(np.isin(sequence.ids, ids))) for ids in composer.names]
    for token, focus in enumerate(sequence.focus):
        if not focus:
            continue
        entries[PATCHES].append((row, token - 1, _at(length, cells[focus.picture, list(focus.cells)])[None], patches))
        if focus.named:
            seen = ((segments == 0) | (segments == segments[token])) & (np.arange(length) < token) & ~patches
            mine = seen & (segments == segments[token])
            entries[WORDS].append((row, token - 1, np.stack([mine & name for name in names]), seen))


def collate(sequences: list[Sequence], composer: Composer) -> Batch:
    """Pad to the longest sequence; the padding is also the id of picture tokens."""
    longest = max(len(s.ids) for s in sequences)
    entries: Entries = {kind: [] for kind in (NUMBERS, WORDS, PLACES, PATCHES)}
    compared: list[tuple[int, int, int]] = []
    for row, sequence in enumerate(sequences):
        cells = np.flatnonzero(np.array(sequence.ids) == composer.pad).reshape(-1, GRID * GRID)
        _guide_answers(entries, row, sequence, cells, composer, longest)
        if len(cells) > 1:
            _guide_pictures(entries, row, cells, composer.number, longest)
        if sequence.differences:
            compared += [(row, int(token), kind) for token, kind in zip(cells[1], sequence.differences, strict=True)]

    def padded(name: str, value: float) -> Tensor:
        return torch.tensor([getattr(s, name) + [value] * (longest - len(s.ids)) for s in sequences])

    rows, tokens, kinds = torch.tensor(compared, dtype=torch.int64).reshape(-1, 3).T
    return Batch(
        padded("ids", composer.pad),
        padded("positions", 0),
        padded("segments", -1),
        padded("weights", 0.0),
        padded("classes", 0),
        [Guide.of(kind, found) for kind, found in entries.items() if found],
        (rows, tokens, kinds),
    )
