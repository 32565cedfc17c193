"""GPTQ (Frantar et al., arXiv 2210.17323): rounding one input at a time and repairing the error in the later ones.

The loss is that of the layer's outputs, |(W - Q) X|^2 = tr((W - Q) H (W - Q)^T) with H = X X^T over calibration inputs.
Inputs are rounded in the order of their energy, largest first; scales are fixed before ("static groups") and clip
nothing, so the stored layout is that of plain rounding. Shrunk scales, which help plain rounding, do harm here: weights
that are repaired grow beyond their block's extremes and are clipped in turn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwenvl_edge_export.weight_formats import Blocks

_DAMPING = 0.01  # of the mean energy, added to H's diagonal
_COLUMNS = 128  # rounded before the later columns are repaired
_ROWS = 512  # of a weight at once, where a copy of the whole would only take memory


def quantize(weight: Tensor, hessian: Tensor, blocks: Blocks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers uint8 [out, in] and scales [out, in / size] float32 for a float32 `weight` and its inputs' H [in, in].

    `dtype` is the type that scales are stored in; they are rounded to it first.
    """
    scales = blocks.scales(weight).to(dtype).to(torch.float32)
    order = hessian.diagonal().argsort(descending=True)
    upper = _inverse_root(hessian, order)
    place = (order // blocks.size).tolist()  # of each input's scale
    rest = weight[:, order]
    integers = torch.empty_like(rest, dtype=torch.uint8)
    for start in range(0, rest.shape[1], _COLUMNS):
        end = min(start + _COLUMNS, rest.shape[1])
        part, errors = rest[:, start:end], torch.empty_like(rest[:, start:end])
        for i in range(end - start):
            column, row, step = part[:, i], upper[start + i, start + i : end], scales[:, place[start + i]]
            rounded = (column / step).round().clamp(-blocks.zero, blocks.zero - 1)
            integers[:, start + i] = (rounded + blocks.zero).to(torch.uint8)
            errors[:, i] = (column - rounded * step) / row[0]
            part[:, i:] -= errors[:, i : i + 1] * row
        for later, error in zip(torch.split(rest[:, end:], _ROWS), torch.split(errors, _ROWS), strict=True):
            later.sub_(error @ upper[start:end, end:])
    return integers[:, order.argsort()], scales


def relative_loss(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """|(W - Q) X| / |W X|: the relative change of the layer's outputs on the calibration inputs."""
    change = whole = 0.0
    for wanted, given in zip(torch.split(weight, _ROWS), torch.split(rounded, _ROWS), strict=True):
        lost = wanted - given
        change += float(((lost @ hessian) * lost).sum())
        whole += float(((wanted @ hessian) * wanted).sum())
    return math.sqrt(max(change, 0.0) / max(whole, 1e-30))


def _inverse_root(hessian: Tensor, order: Tensor) -> Tensor:
    """Upper triangular U with U^T U = (H + damping)^-1 in this order of inputs; those that never occur are the mean.

    H is the largest matrix of all and is copied once: it is laid out column by column, as LAPACK wants it, so that
    each step overwrites the one before.
    """
    root = hessian.mT[order[:, None], order].mT
    diagonal = root.diagonal()
    diagonal[diagonal <= 0] = diagonal.mean().clamp(min=1e-6)
    diagonal += _DAMPING * diagonal.mean()
    torch.linalg.cholesky(root, out=root)
    torch.cholesky_inverse(root, out=root)
    torch.linalg.cholesky(root, upper=True, out=root)
    return root
