"""Read-outs of a second picture's tokens: what stood at their place in the first one, and if that changed.

The decoder compares two pictures in a layer where patches look at the same place before (guiding.py). Answers alone
taught it slowly what to keep of that: it saw that something was gone and named anything. The read-outs are thrown away
after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.nano.talk.dense import IGNORE, NOTHING, Grid, covered, targets
from tools.nano.talk.guiding import SEATS
from tools.nano.talk.kinds import COLOURS, NAMES
from tools.nano.talk.scenes import Change, Scene

CHANGED_WEIGHT = 4.0  # few tokens changed


class Noticer(nn.Module):
    """Linear read-outs of the decoder's states."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = [len(NAMES) + 2, len(COLOURS), 2]
        self.read = nn.Linear(width, sum(self.sizes))
        balance = torch.ones(len(NAMES) + 2)
        balance[NOTHING] = 0.4
        self.register_buffer("balance", balance)
        self.register_buffer("rare", torch.tensor([1.0, CHANGED_WEIGHT]))

    def forward(self, states: Tensor, kind: Tensor, colour: Tensor, changed: Tensor) -> Tensor:
        """Loss of states [n, width]: kind and colour of the picture before and whether it changed, int64 [n]."""
        normal = F.rms_norm(states.float(), states.shape[-1:])
        kinds, colours, flags = self.read(normal).float().split(self.sizes, dim=-1)
        loss = F.cross_entropy(kinds, kind, self.get_buffer("balance"))
        loss = loss + F.cross_entropy(flags, changed, self.get_buffer("rare"))
        return loss + F.cross_entropy(colours, colour, ignore_index=IGNORE) if (colour != IGNORE).any() else loss


@dataclass(frozen=True)
class Notice:
    """Targets of the states of second pictures. tokens: places in the batch [n]; kind, colour, changed: [n]."""

    noticer: Noticer
    tokens: Tensor
    kind: Tensor
    colour: Tensor
    changed: Tensor
    name: str = "changes noticed"
    layer: int = SEATS["patches seen"][0]  # answers look for what changed there

    def loss(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        """Loss of the states [T, width] before the layer; its queries and keys are not looked at."""
        del q, k
        with torch.autocast("cpu", enabled=False):
            return self.noticer(hidden.index_select(0, self.tokens), self.kind, self.colour, self.changed)


def notice(
    noticer: Noticer, shown: Sequence[tuple[Sequence[Scene], Change | None]], grids: Sequence[Grid], places: Tensor
) -> list[Notice]:
    """The notice of a batch, if it has a changed picture.

    shown: the scenes of each row and their change. grids: of each picture. places: of the pictures' tokens.
    """
    tokens, found = [], []
    picture = start = 0
    for scenes, change in shown:
        sizes = [rows * columns for rows, columns in grids[picture : picture + len(scenes)]]
        if change:
            flags = np.zeros(sizes[1], np.int64)
            for thing in (change.before, change.after):
                if thing:
                    flags[covered(thing.box, grids[picture + 1])] = 1
            before = targets(scenes[0], grids[picture])
            tokens.append(places[start + sizes[0] : start + sizes[0] + sizes[1]])
            found.append((before.kind, before.colour, torch.from_numpy(flags)))
        start, picture = start + sum(sizes), picture + len(scenes)
    if not tokens:
        return []
    kind, colour, changed = (torch.cat(each) for each in zip(*found, strict=True))
    return [Notice(noticer, torch.cat(tokens), kind, colour, changed)]
