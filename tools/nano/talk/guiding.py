"""Showing attention where to look: a loss on a few heads that asks which tokens they are to find.

Left alone, a decoder needs many thousand pictures before it finds the patches that belong to "the red mug". So in
training two heads of one layer gather the words that name a thing, two of the next look at the patches that show it,
and patches look at the same place of the picture before. The exported graphs know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HEADS = 2  # as many heads follow a guide
SEATS = {"words seen": (1, 0), "places seen": (1, 2), "patches seen": (2, 0)}  # layer and first head


@dataclass(frozen=True)
class Guide:
    """Targets of the attention of a few heads, from n tokens.

    rows, tokens: place of each in the batch, [n]; rows ascend. wanted: the tokens that it is to look at; among: those
    that its attention is counted over; both bool [n, T].
    """

    name: str
    rows: Tensor
    tokens: Tensor
    wanted: Tensor
    among: Tensor

    @property
    def layer(self) -> int:
        """The layer whose heads follow."""
        return SEATS[self.name][0]

    @classmethod
    def of(cls, name: str, entries: Sequence[tuple[int, int, np.ndarray, np.ndarray]]) -> Guide:
        """Make a guide of a list of (row, token, wanted [T], among [T])."""
        rows, tokens = (torch.tensor([entry[i] for entry in entries]) for i in (0, 1))
        wanted, among = (torch.from_numpy(np.stack([entry[i] for entry in entries])) for i in (2, 3))
        return cls(name, rows, tokens, wanted, among)


def guided_loss(q: Tensor, k: Tensor, guide: Guide) -> Tensor:
    """Mean of -log of the share of attention that wanted tokens get.

    q: [B, heads, T, D]. k: the same, of as many heads or fewer.
    """
    heads = torch.arange(HEADS) + SEATS[guide.name][1]
    q, k = q[:, heads], k[:, heads * k.shape[1] // q.shape[1]]
    asking = q.transpose(1, 2)[guide.rows, guide.tokens].split(guide.rows.bincount(minlength=len(k)).tolist())
    scores = torch.cat([torch.einsum("nhd,htd->nht", a, b) for a, b in zip(asking, k, strict=True)])
    scores = scores.float() / q.shape[-1] ** 0.5
    part = scores.masked_fill(~guide.wanted[:, None], -torch.inf).logsumexp(-1)
    whole = scores.masked_fill(~guide.among[:, None], -torch.inf).logsumexp(-1)
    return (whole - part).mean()
