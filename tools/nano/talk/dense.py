"""Per-token targets of the picture side: the generator knows what every token of a picture shows.

Before any language is involved tower and merger learn to name the thing under each token, its colour, its box (as sides
and as phases, which a decoder that writes digits reads linearly) and the letters of a sign. The heads that predict all
this are thrown away after training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.nano.scenes import Box
from tools.nano.signs import letter_boxes
from tools.nano.talk.kinds import COLOURS, NAMES
from tools.nano.talk.scenes import Scene

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
NOTHING, SIGN = len(NAMES), len(NAMES) + 1
IGNORE = -100
WAVES = (1, 2, 5, 10)  # waves per side, whose phases code a coordinate; the last one tells its second digit
Grid = tuple[int, int]  # rows and columns of tokens


def shares(box: Box, grid: Grid) -> np.ndarray:
    """The part of each token's area that lies under a box, [rows * columns]."""
    rows, columns = grid
    across, down = np.arange(columns + 1) / columns, np.arange(rows + 1) / rows
    wide = np.clip(np.minimum(across[1:], box[2]) - np.maximum(across[:-1], box[0]), 0, None) * columns
    high = np.clip(np.minimum(down[1:], box[3]) - np.maximum(down[:-1], box[1]), 0, None) * rows
    return np.outer(high, wide).ravel()


def centre(box: Box, grid: Grid) -> int:
    """The token in which a box's middle lies."""
    rows, columns = grid
    column, row = int((box[0] + box[2]) / 2 * columns), int((box[1] + box[3]) / 2 * rows)
    return min(row, rows - 1) * columns + min(column, columns - 1)


def covered(box: Box, grid: Grid) -> np.ndarray:
    """The tokens that speak of a box: those with 30 % of their area under it, and its centre; their numbers."""
    seen = shares(box, grid) >= 0.3
    seen[centre(box, grid)] = True
    return np.flatnonzero(seen)


@dataclass(frozen=True)
class Targets:
    """Of tokens [N]: kind, colour and whether the middle of a thing is there, int64; box [N, 4] and letters [N, 36]."""

    kind: Tensor
    colour: Tensor
    middle: Tensor
    box: Tensor
    letters: Tensor

    @classmethod
    def joined(cls, several: list[Targets]) -> Targets:
        """The targets of several pictures, one after the other."""
        names = ("kind", "colour", "middle", "box", "letters")
        return cls(*(torch.cat([getattr(each, name) for each in several]) for name in names))


def targets(scene: Scene, grid: Grid) -> Targets:
    """The targets of one picture."""
    count = grid[0] * grid[1]
    kind, colour = np.full(count, NOTHING), np.full(count, IGNORE)
    middle, boxes, best = np.zeros(count, np.int64), np.zeros((count, 4), np.float32), np.full(count, 0.3)
    letters = np.zeros((count, len(CHARACTERS)), np.float32)
    entries = [(t.box, NAMES.index(t.kind), COLOURS.index(t.colour) if t.colour else IGNORE) for t in scene.things]
    entries += [(sign.box, SIGN, IGNORE) for sign in scene.signs]
    for box, number, name in entries:
        cover, at = shares(box, grid), centre(box, grid)
        cover[at] += 1
        mine = cover >= best
        best[mine], kind[mine], colour[mine], boxes[mine] = cover[mine], number, name, box
        middle[at] = 1
    for sign in scene.signs:
        for letter, box in zip(sign.text, letter_boxes(sign, scene.canvas), strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1]) * count
            letters[shares(box, grid) > 0.35 * area, CHARACTERS.index(letter)] = 1
    arrays = (kind, colour, middle, boxes, letters)
    return Targets(*(torch.from_numpy(np.asarray(each)) for each in arrays))


class DenseHeads(nn.Module):
    """Linear read-outs of a picture's features [N, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = [len(NAMES) + 2, len(COLOURS), 2, len(CHARACTERS), 4, 8 * len(WAVES)]
        self.read = nn.Linear(width, sum(self.sizes))
        balance = torch.ones(len(NAMES) + 2)
        balance[NOTHING] = 0.4
        self.register_buffer("balance", balance)

    def forward(self, features: Tensor, wanted: Targets) -> tuple[Tensor, dict[str, float]]:
        """Loss, and the share of right answers by what was asked."""
        kind, colour, middle, letters, box, phase = self.read(features).float().split(self.sizes, dim=-1)
        balance = self.get_buffer("balance")
        loss = 2 * F.cross_entropy(kind, wanted.kind, balance) + F.cross_entropy(middle, wanted.middle)
        there = wanted.kind != NOTHING
        figures = {"kind": _right(kind, wanted.kind, there & (wanted.kind != SIGN))}
        named = wanted.colour != IGNORE
        if named.any():
            loss = loss + F.cross_entropy(colour[named], wanted.colour[named])
            figures["colour"] = _right(colour, wanted.colour, named)
        spelt = wanted.letters.sum(-1) > 0
        if spelt.any():  # the letters on a token share its probability
            share = wanted.letters[spelt] / wanted.letters[spelt].sum(-1, keepdim=True)
            loss = loss + 2 * F.cross_entropy(letters[spelt], share)
            best = letters[spelt].argmax(-1, keepdim=True)
            figures["spelling"] = float(wanted.letters[spelt].gather(1, best).mean())
        if there.any():
            off = (box - wanted.box)[there]
            angles = 2 * torch.pi * (wanted.box[there][..., None] * wanted.box.new_tensor(WAVES)).flatten(1)
            waves = torch.cat([angles.sin(), angles.cos()], dim=1)
            distance = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none", beta=0.02)
            loss = loss + 5 * distance.sum(1).mean() + 0.2 * (phase[there] - waves).square().sum(1).mean()
            figures["off"] = float(off.detach().abs().mean())
        return loss, figures


def _right(logits: Tensor, wanted: Tensor, among: Tensor) -> float:
    return float((logits.argmax(-1) == wanted)[among].float().mean()) if among.any() else 0.0
