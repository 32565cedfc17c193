"""SmoothQuant (Xiao et al., arXiv 2211.10438): inputs made easier to quantize at the weights' expense.

    y = x W^T = (x / s) (W s)^T,   s = max|x| ^ a / max|W| ^ (1 - a)   for each input channel

One scale has to serve all channels of x, and a few of them are much larger than the rest. Dividing them by s evens them
out; W has a scale for each output row and bears the difference. The best a differs from layer to layer: of a
few, and of no smoothing at all, the one with which the layer's outputs on a sample of its inputs change least. Where
that is still too much, the inputs stay floats, as those of the MLP's last layer, products of two outputs, often do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwenvl_edge_export.weight_formats import InputScales, StaticRows, row_pieces

_STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_MOST = 0.02
"""Largest change of a layer's outputs. In the nano model the last layers of the decoder's MLPs have 0.03 to 0.09,
all other layers 0.015 at most; with floats for the former, the mean KL divergence in verification falls from 0.16 to
0.008."""
_WEIGHT_ROWS = 2048  # of a matrix, that candidates are compared on
_SMALLEST, _LARGEST = 1e-4, 1e4  # of a factor: within float16, and so are inputs divided by it


class InputSample:
    """A summary of a layer's inputs: the largest size in each channel, and some of the rows.

    Args:
        calls: how often `add` will be called.
        rows: how many rows to keep, from all calls together.
    """

    def __init__(self, calls: int, rows: int = 512):
        self._each = max(1, rows // calls)
        self._largest: Tensor | None = None
        self._kept: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        """Take note of inputs [..., in]."""
        flat = inputs.detach().flatten(0, -2)
        largest = flat.abs().amax(dim=0)
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        picked = torch.linspace(0, len(flat) - 1, min(self._each, len(flat))).long()
        self._kept.append(flat[picked])

    @property
    def largest(self) -> Tensor:
        """The largest size in each channel, [in]."""
        assert self._largest is not None  # calibration adds every sample before it asks
        return self._largest

    @property
    def rows(self) -> Tensor:
        """The rows that were kept, [rows, in]."""
        return torch.cat(self._kept)


def smooth(weights: Sequence[Tensor], seen: InputSample) -> tuple[InputScales | None, dict[str, float]]:
    """Scales for the inputs that linear layers with `weights` [out, in] share; None where floats are needed.

    Returns:
        The scales, and the relative change of the layers' outputs: "rtn" without smoothing, "calibrated" as chosen.
    """
    few = torch.cat([weight[:: -(-len(weight) // _WEIGHT_ROWS)].float() for weight in weights])
    plain = _scales(seen, torch.ones_like(seen.largest))
    sizes = column_sizes(weights)
    candidates = [plain, *(input_scales(sizes, seen, strength) for strength in _STRENGTHS)]
    losses = [_loss(few, seen.rows, given) for given in candidates]
    best = min(range(len(candidates)), key=losses.__getitem__)
    if losses[best] > _MOST:
        return None, {"rtn": losses[0], "calibrated": _loss(few, seen.rows, None)}
    return candidates[best], {"rtn": losses[0], "calibrated": losses[best]}


def column_sizes(weights: Sequence[Tensor]) -> Tensor:
    """The largest size in each column [in] of all `weights` [out, in]."""
    return torch.stack(
        [piece.to(torch.float32).abs().amax(dim=0) for weight in weights for piece in row_pieces(weight)]
    ).amax(dim=0)


def input_scales(sizes: Tensor, seen: InputSample, strength: float) -> InputScales:
    """Scales for inputs at a smoothing strength of 0 to 1, from the `column_sizes` [in] of their weights."""
    return _scales(seen, _factors(seen.largest, sizes, strength))


def quantize_inputs(inputs: Tensor, given: InputScales) -> Tensor:
    """Inputs [..., in] as their integers stand for them, in float32: divided by the factors, rounded, clamped."""
    steps = StaticRows.steps
    return (inputs / given.factors / given.scale).round_().clamp_(-steps - 1, steps) * given.scale


def _factors(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Factors [in] from the sizes of each channel's inputs and weights; channels that never occur keep 1."""
    factors = inputs**strength / weights.clamp(min=1e-8) ** (1 - strength)
    return factors.where(inputs > 0, 1.0).clamp_(_SMALLEST, _LARGEST)


def _scales(seen: InputSample, factors: Tensor) -> InputScales:
    scale = float((seen.largest / factors).max()) / StaticRows.steps
    return InputScales(factors, scale or 1.0)


def _loss(weight: Tensor, rows: Tensor, given: InputScales | None) -> float:
    """|x W^T - quantized| / |x W^T|; None quantizes the weight only."""
    static = StaticRows()
    smoothed = weight if given is None else weight * given.factors
    scales = static.scales(smoothed)
    rounded = static.floats(static.integers(smoothed, scales), scales)
    inputs = rows if given is None else quantize_inputs(rows, given)
    wanted = rows @ weight.T
    return float((inputs @ rounded.T - wanted).norm() / wanted.norm().clamp(min=1e-30))
