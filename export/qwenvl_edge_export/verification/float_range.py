"""The range of float16 on the picture side: what a bundle computes in it, over pictures of several sizes.

ONNX Runtime's CPU computes float16 graphs in float32, so a comparison there cannot see an overflow. Here the values
that a bundle would hold in float16 are read from the reference: inputs and products of the linear layers, and queries,
keys, values and scores of attention. Overflows depend on a picture's size (llama.cpp#17534), so sizes range from the
smallest picture of a bundle to its largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qwenvl_edge.bundle.manifest import Precision
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge_export.families.base import PictureInputs, ReferenceVision
from qwenvl_edge_export.graphs.linear import HEADROOM
from qwenvl_edge_export.verification.limits import Row

MOST = 65504.0
"""The largest number of float16."""
STAGE = "float16 range"
_SEED = 11
_SHAPES = ((1, 1), (4, 3), (1, 4), (5, 1))
"""Sides of pictures of the middle size, as shares; the smallest and the largest picture are square."""


@dataclass
class Extreme:
    """The largest value that was seen at one place, as a share of what the bundle can hold there."""

    share: float = 0.0
    value: float = 0.0
    place: str = ""
    size: str = ""

    def see(self, value: float, limit: float, place: str, size: str) -> None:
        """Keep a value if it is nearer to its limit, or beyond any."""
        share = value / limit if math.isfinite(value) else math.inf
        if share > self.share:
            self.share, self.value, self.place, self.size = share, value, place, size


class RangeProbe:
    """Watches the modules of a reference's picture side while it computes.

    Args:
        vision: of the checkpoint.
        precision: of the bundle, whose picture side computes in float16.
    """

    def __init__(self, vision: ReferenceVision, precision: Precision):
        self.extreme = Extreme()
        self.sizes: list[str] = []
        self._heads = vision.attention_heads
        spared = HEADROOM if vision.wide_products else 1.0
        # A product of integers leaves as float16, undivided; every other form computes in a wider type.
        self._limit = {"fp16": MOST * spared, "w8a8": MOST}.get(precision.vision, math.inf)
        self._hooks = [
            module.register_forward_hook(self._watch(name), prepend=True)  # before the weights go
            for name, module in vision.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def watch(self, size: str) -> None:
        """The next values are of a picture of this size."""
        self.sizes.append(size)

    def close(self) -> None:
        """Leave the modules alone."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Linear, given: tuple[Tensor, ...], found: Tensor) -> None:
            size = self.sizes[-1]
            self.extreme.see(_largest(given[0]), self._limit, f"the input of {name}", size)
            products = found if module.bias is None else found - module.bias
            self.extreme.see(_largest(products), self._limit, f"the product of {name}", size)
            if self._heads and name.endswith(".qkv"):
                self._see_attention(found, name, size)

        return hook

    def _see_attention(self, qkv: Tensor, name: str, size: str) -> None:
        """A rotation keeps the length of a pair, and a score is at most the product of two lengths."""
        q, k, v = qkv.reshape(-1, 3, self._heads, qkv.shape[-1] // 3 // self._heads).unbind(1)
        rotated = max(_largest(x.reshape(*x.shape[:-1], 2, -1).norm(dim=-2)) for x in (q, k))
        self.extreme.see(rotated, MOST, f"a query or key of {name}", size)
        self.extreme.see(_largest(v), MOST, f"a value of {name}", size)
        longest = q.norm(dim=-1).amax(0) * k.norm(dim=-1).amax(0) * q.shape[-1] ** -0.5
        self.extreme.see(_largest(longest), MOST, f"a score of {name}", size)

    def row(self) -> Row:
        """The place that comes nearest to its limit, or lies farthest beyond it."""
        found = self.extreme
        limit = found.value / found.share if found.share and math.isfinite(found.share) else MOST
        where = f"{found.place}, {len(self.sizes)} pictures up to {self.sizes[-1]}"
        broken = ""
        if found.share > 1:
            broken = (
                f"{found.place} reaches {found.value:.3g} for a picture of {found.size}, beyond the {limit:.3g} that "
                "float16 holds there; export the picture side with --vision-precision bf16"
            )
        return Row(STAGE, "vision", where, found.value, limit, None, not broken, broken)


def range_pictures(family: Family) -> Iterator[tuple[str, PictureInputs]]:
    """Pictures of noise, with their sizes in words: the smallest, some of a middle size, and the largest."""
    dice = np.random.default_rng(_SEED)
    width, height = family.seen_size(family.layout((1, 1)))
    most = family.largest_layout().tokens
    side = math.isqrt(width * height)
    large = math.isqrt(most) * side
    middle = math.sqrt(side * large)
    sizes = [(side, side)]
    sizes += [
        (round(middle * math.sqrt(across / down)), round(middle * math.sqrt(down / across))) for across, down in _SHAPES
    ]
    sizes += [(large, large)]
    for seen in dict.fromkeys(family.seen_size(family.layout(size)) for size in sizes):
        picture = load_picture(dice.integers(0, 256, (seen[1], seen[0], 3), dtype=np.uint8))
        yield f"{seen[0]}x{seen[1]}", PictureInputs(picture.vision_inputs(family), family.layout(seen))


def _largest(values: Tensor) -> float:
    return float(torch.nan_to_num(values.abs(), nan=math.inf).max())
