"""Showing attention where to look: which tokens some heads of some layers are to find, and the loss that asks for it.

Left alone, the decoder needs many thousand pictures before it finds out which patches belong to "the red mug". So in
training a few heads are shown it: in the first layer a picture's patches look at its number, in the second a named
thing's words are gathered and each patch looks at the same place of the picture before, in the third an answer looks
at the patches that it speaks of.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenvl_edge_export.families.qwen_vl.reference import Block, rotate

HEADS = 2  # as many heads follow a guide
NUMBERS, WORDS, PLACES, PATCHES = range(4)
SEATS = {NUMBERS: (0, 2), WORDS: (1, 0), PLACES: (1, 2), PATCHES: (2, 0)}  # layer and first head
NAMES = {NUMBERS: "numbers seen", WORDS: "words seen", PLACES: "places seen", PATCHES: "patches seen"}


class Focus(NamedTuple):
    """Subject of a token: cells of a picture, and whether the dialogue names it by colour and kind."""

    picture: int
    cells: tuple[int, ...]
    named: bool


class Guide(NamedTuple):
    """Targets of the attention of the heads of `kind`, from n tokens.

    rows, tokens: place of each in the batch, [n]; rows ascend. wanted: the tokens that it is to look at, bool
    [n, HEADS or 1, T]. among: those that its attention is counted over, bool [n, 1, T].
    """

    kind: int
    rows: Tensor
    tokens: Tensor
    wanted: Tensor
    among: Tensor

    @classmethod
    def of(cls, kind: int, entries: list[tuple[int, int, np.ndarray, np.ndarray]]) -> Guide:
        """Make a guide of a list of (row, token, wanted [HEADS or 1, T], among [T])."""
        rows, tokens = (torch.tensor([entry[i] for entry in entries]) for i in (0, 1))
        wanted, among = (torch.from_numpy(np.stack([entry[i] for entry in entries])) for i in (2, 3))
        return cls(kind, rows, tokens, wanted, among[:, None])


def attention_scores(block: Block, hidden: Tensor, guide: Guide, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Attention of the guided heads from the guide's tokens: scores before softmax [n, HEADS, T]."""
    cos, sin = rope
    width = hidden.shape[-1]
    dim = width // block.attn.heads
    start = SEATS[guide.kind][1] * dim
    part = slice(start, start + HEADS * dim)
    (w_q, b_q), (w_k, b_k) = (
        (block.attn.c_attn.weight[i * width : (i + 1) * width][part], block.attn.c_attn.bias[i * width :][:width][part])
        for i in (0, 1)
    )
    x = block.ln_1(hidden)
    q = F.linear(x[guide.rows, guide.tokens], w_q, b_q).unflatten(-1, (HEADS, dim))
    q = rotate(q, cos[guide.rows, 0, guide.tokens][:, None], sin[guide.rows, 0, guide.tokens][:, None])
    k = rotate(F.linear(x, w_k, b_k).unflatten(-1, (HEADS, dim)).transpose(1, 2), cos, sin)
    by_row = q.split(guide.rows.bincount(minlength=len(k)).tolist())  # gathering k[rows] would cost more
    scores = torch.cat([torch.einsum("nhd,htd->nht", *pair) for pair in zip(by_row, k, strict=True)])
    return scores.float() / dim**0.5


def focus_loss(block: Block, hidden: Tensor, guide: Guide, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of -log of the share of attention that wanted tokens get, over tokens that want any."""
    scores = attention_scores(block, hidden, guide, rope)
    wanted, among = guide.wanted.expand_as(scores), guide.among.expand_as(scores)
    asked = wanted.any(-1)
    part = scores.masked_fill(~wanted, -torch.inf)[asked].logsumexp(-1)
    whole = scores.masked_fill(~among, -torch.inf)[asked].logsumexp(-1)
    return (whole - part).sum() / asked.sum().clamp(min=1)
