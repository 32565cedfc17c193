"""Showing attention where to look: a loss on a few heads that asks which tokens they are to find.

Left alone, a decoder needs many thousand pictures before it finds the patches that belong to "the red mug". So in
training two heads of one layer gather the words that name a thing, two of the next look at the patches that show it,
and patches look at the same place of the picture before. The exported graphs know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

HEADS = 2  # as many heads follow a guide
SEATS = {"words seen": (1, 0), "places seen": (1, 2), "patches seen": (2, 0)}  # layer and first head


class Teacher(Protocol):
    """Something that a layer of the decoder is to do beside the answers, with a name for the log."""

    @property
    def name(self) -> str:
        """What the figure is called."""

    @property
    def layer(self) -> int:
        """The layer."""

    def loss(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        """Loss from the layer's queries and keys [T, heads, D] and the states before it [T, width]."""


@dataclass(frozen=True)
class Guide:
    """Targets of the attention of a few heads.

    tokens: places in the batch [n]. wanted: the tokens that each of them is to look at; among: those that its attention
    is counted over; both for each row of the batch, bool [n of the row, length of the row].
    """

    name: str
    tokens: Tensor
    wanted: list[Tensor]
    among: list[Tensor]

    @property
    def layer(self) -> int:
        """The layer whose heads follow."""
        return SEATS[self.name][0]

    def loss(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        """See Teacher."""
        del hidden
        return guided_loss(q, k, self)

    @classmethod
    def of(
        cls, name: str, rows: Sequence[Sequence[tuple[int, np.ndarray, np.ndarray]]], lengths: Sequence[int]
    ) -> Guide:
        """Make a guide of lists of (token of the row, wanted, among), one for each row, and the rows' lengths."""
        starts = np.cumsum([0, *lengths[:-1]])
        tokens = [start + entry[0] for start, entries in zip(starts, rows, strict=True) for entry in entries]
        wanted, among = (
            [
                torch.from_numpy(np.array([entry[part] for entry in entries], bool).reshape(-1, length))
                for entries, length in zip(rows, lengths, strict=True)
            ]
            for part in (1, 2)
        )
        return cls(name, torch.tensor(tokens), wanted, among)


def guided_loss(q: Tensor, k: Tensor, guide: Guide) -> Tensor:
    """Mean of -log of the share of attention that wanted tokens get.

    q: [T, heads, D]. k: the same, of as many heads or fewer.
    """
    first = SEATS[guide.name][1]
    heads = torch.arange(first, first + HEADS) * k.shape[1] // q.shape[1]
    asking = q[:, first : first + HEADS].index_select(0, guide.tokens).float()
    lengths = [each.shape[1] for each in guide.wanted]
    rows = zip(
        asking.split([len(each) for each in guide.wanted]),
        k.index_select(1, heads)[: sum(lengths)].float().split(lengths),
        guide.wanted,
        guide.among,
        strict=True,
    )
    losses = []
    with torch.autocast("cpu", enabled=False):  # no two shapes are alike: see batches.UNIT
        for asked, keys, wanted, among in rows:
            scores = torch.einsum("nhd,thd->nht", asked, keys) / q.shape[-1] ** 0.5
            part = scores.masked_fill(~wanted[:, None], -torch.inf).logsumexp(-1)
            losses.append(scores.masked_fill(~among[:, None], -torch.inf).logsumexp(-1) - part)
    return torch.cat(losses).mean()
