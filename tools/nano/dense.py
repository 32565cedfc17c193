"""First stage of training: the ViT and the resampler learn to describe each patch before any language is involved.

The paper trains the picture side first, on much data; here its place is taken by what the generator knows about every
patch: kind and colour of the thing that covers it, that thing's box (digit by digit, as the decoder will have to write
it), and the letters of a sign. The heads that predict all this are thrown away with the stage.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.nano.scenes import COLOURS, KINDS, Box, Change, Scene
from tools.nano.signs import letter_boxes

GRID = 8
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
LETTERS = 6
NOTHING, SIGN = len(KINDS), len(KINDS) + 1
IGNORE = -100
WAVES = (1, 2, 5, 10)  # waves per side, whose phases code a coordinate; the last one tells its second digit
# columns of a patch's integer target: kind, colour, hundreds and tens of the four box sides, letters, a centre or not
KIND, COLOUR, DIGITS, TEXT, CENTRES, WIDTH = 0, 1, 2, 10, 10 + LETTERS, 11 + LETTERS


def _cells(box: Box) -> tuple[np.ndarray, int]:
    """Part of each cell's area under `box` [GRID * GRID], and the cell of its centre."""
    edges = np.arange(GRID + 1) / GRID
    across = np.clip(np.minimum(edges[1:], box[2]) - np.maximum(edges[:-1], box[0]), 0, None)
    down = np.clip(np.minimum(edges[1:], box[3]) - np.maximum(edges[:-1], box[1]), 0, None)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    centre = min(int(y * GRID), GRID - 1) * GRID + min(int(x * GRID), GRID - 1)
    return np.outer(down, across).ravel() * GRID * GRID, centre


def covered(box: Box) -> np.ndarray:
    """Patches of a thing, bool [GRID * GRID]: those with 30 % of their area under it, and that of its centre."""
    cover, centre = _cells(box)
    seen: np.ndarray = cover >= 0.3
    seen[centre] = True
    return seen


def centre(box: Box) -> int:
    """The patch in which a thing's middle lies."""
    return _cells(box)[1]


def differences(change: Change) -> list[int]:
    """For each patch of the second picture: 0 as before, 1 its thing is gone, 2 was added, 3 has another colour."""
    cells = [0] * (GRID * GRID)
    thing = change.before or change.after
    if thing:
        for cell in np.flatnonzero(covered(thing.box)):
            cells[cell] = ("none", "gone", "added", "colour").index(change.what)
    return cells


def _digits(box: Box) -> list[int]:
    values = [min(int(side * 1000), 999) for side in box]
    return [v // 100 for v in values] + [v // 10 % 10 for v in values]


def targets(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Targets of the patches: integers [GRID * GRID, WIDTH] (IGNORE where undefined), and boxes [GRID * GRID, 4] with,
    after them, which characters stand on the patch, [GRID * GRID, len(CHARACTERS)] of 0 or 1.
    """
    labels = np.full((GRID * GRID, WIDTH), IGNORE, np.int64)
    labels[:, KIND], labels[:, CENTRES] = NOTHING, 0
    boxes = np.zeros((GRID * GRID, 4), np.float32)
    letters_seen = np.zeros((GRID * GRID, len(CHARACTERS)), np.float32)
    best = np.full(GRID * GRID, 0.3)
    entries = [(t.box, KINDS.index(t.kind), COLOURS.index(t.colour), "") for t in scene.things]
    for sign in scene.signs:
        entries.append((sign.box, SIGN, IGNORE, sign.text))
        for letter, box in zip(sign.text, letter_boxes(sign, scene.canvas), strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1]) * GRID * GRID
            letters_seen[_cells(box)[0] > 0.35 * area, CHARACTERS.index(letter)] = 1
    for box, kind, colour, text in entries:
        cover, centre = _cells(box)
        cover[centre] += 1
        mine = cover >= best
        best[mine] = cover[mine]
        letters = [CHARACTERS.index(c) for c in text] + [len(CHARACTERS)] * (LETTERS - len(text))
        labels[mine, :CENTRES] = [kind, colour, *_digits(box), *(letters if text else [IGNORE] * LETTERS)]
        labels[centre, CENTRES] = 1
        boxes[mine] = box
    return labels, np.concatenate([boxes, letters_seen], axis=1)


class DenseHeads(nn.Module):
    """Linear read-outs of patch features [N, GRID * GRID, dim]."""

    def __init__(self, dim: int):
        super().__init__()
        self.sizes = [len(KINDS) + 2, len(COLOURS), *[10] * 8, *[len(CHARACTERS) + 1] * LETTERS, 2]
        self.classify = nn.Linear(dim, sum(self.sizes))
        self.locate = nn.Linear(dim, 4)
        self.phase = nn.Linear(dim, 4 * 2 * len(WAVES))
        self.spell = nn.Linear(dim, len(CHARACTERS))
        balance = torch.ones(len(KINDS) + 2)
        balance[NOTHING] = 0.4
        self.register_buffer("balance", balance)

    def forward(self, features: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss, and the share of right answers by what was asked."""
        parts = self.classify(features).flatten(0, 1).split(self.sizes, dim=-1)
        wanted = labels.flatten(0, 1)
        loss = features.new_zeros(())
        right: dict[str, list[Tensor]] = {
            "kind": [],
            "colour": [],
            "hundreds": [],
            "tens": [],
            "letters": [],
            "centre": [],
        }
        names = ["kind", "colour", *["hundreds"] * 4, *["tens"] * 4, *["letters"] * LETTERS, "centre"]
        weights = {"kind": 2.0, "colour": 1.0, "hundreds": 0.2, "tens": 0.1, "letters": 0.2, "centre": 1.0}
        for i, (logits, name) in enumerate(zip(parts, names, strict=True)):
            known = wanted[:, i] != IGNORE
            if not known.any():
                continue
            balance = self.balance if name == "kind" else None
            loss = loss + weights[name] * F.cross_entropy(logits, wanted[:, i], balance, ignore_index=IGNORE)
            hit = (logits.argmax(-1) == wanted[:, i])[known & (wanted[:, KIND] != NOTHING)]
            right[name].append(hit.float().mean())
        boxes, seen = boxes.flatten(0, 1).split([4, len(CHARACTERS)], dim=-1)
        lettered = seen.sum(-1) > 0
        if lettered.any():  # the letters on a patch share its probability
            logits, seen = self.spell(features).flatten(0, 1)[lettered], seen[lettered]
            loss = loss + 2 * F.cross_entropy(logits, seen / seen.sum(-1, keepdim=True))
            right["spelling"] = [seen.gather(1, logits.argmax(-1, keepdim=True)).mean()]
        inside = (wanted[:, KIND] != NOTHING).float()[:, None]
        places = self.locate(features).flatten(0, 1)
        distance = F.smooth_l1_loss(places, boxes, reduction="none", beta=0.02)
        angles = 2 * torch.pi * (boxes[..., None] * boxes.new_tensor(WAVES)).flatten(1)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        off = (self.phase(features).flatten(0, 1) - waves).square()
        loss = loss + ((5 * distance.sum(1) + 0.2 * off.sum(1)) * inside[:, 0]).sum() / inside.sum().clamp(min=1)
        figures = {k: float(torch.stack(v).mean()) for k, v in right.items() if v}
        figures["off"] = float(
            ((places.detach() - boxes).abs().mean(1) * inside[:, 0]).sum() / inside.sum().clamp(min=1)
        )
        return loss, figures
