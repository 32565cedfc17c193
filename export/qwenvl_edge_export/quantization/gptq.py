"""GPTQ (Frantar et al., arXiv 2210.17323): rounding one input at a time and repairing the error in the later ones.

The loss is that of the layer's outputs, |(W - Q) X|^2 = tr(E H E^T) with E = W - Q and H = X X^T over calibration
inputs. With H = L L^T it is the sum over inputs j of (E L)_j^2, and (E L)_j = L_jj (e_j + sum over i > j of e_i C_ij)
with C_ij = L_ij / L_jj. So the last input is rounded first, each one to what makes its own term smallest. That is
GPTQ's result exactly (Chen et al., arXiv 2507.18553), without the inverse of H. Inputs are ordered so that those of
most energy are rounded first; scales are fixed before ("static groups") and clip nothing, so the stored layout is that
of plain rounding. Shrunk scales, which help plain rounding, do harm here: weights that are repaired grow beyond their
block's extremes and are clipped in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qwenvl_edge_export.weight_formats import Blocks

# With 1 % the losses of a small model depend on the order of sums, so on the processor (docs/design/calibration.md).
_DAMPINGS = (0.05, 0.2, 1.0)  # of the mean energy, added to H's diagonal: the next one where the factor does not exist
_LEAF = 16  # inputs that repair each other one at a time; more are halved, and one product repairs half of them


class Rounding:
    """The corrections C [in, in] that follow from H [in, in], shared by all weights that read the same inputs."""

    def __init__(self, hessian: Tensor):
        self._order = hessian.diagonal().argsort(descending=True).flip(0)
        self._corrections = _corrections(hessian, self._order)

    def quantize(self, weight: Tensor, blocks: Blocks, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Integers uint8 [out, in] and scales [out, in / size] float32 for a float32 `weight` [out, in].

        `dtype` is the type that scales are stored in; they are rounded to it first. Rows do not depend on each other,
        so some of them may be given at a time.
        """
        scales = blocks.scales(weight).to(dtype).to(torch.float32)
        errors = weight.index_select(1, self._order).T.contiguous()  # weights, until they are rounded
        wanted, integers = errors.clone(), torch.empty_like(errors, dtype=torch.uint8)
        steps = scales.T.contiguous()[self._order // blocks.size]
        for start, middle, end in _halves(0, len(errors)):
            if middle is None:
                self._round(slice(start, end), wanted, errors, integers, steps, blocks.zero)
            else:
                wanted[start:middle].addmm_(self._corrections[middle:end, start:middle].T, errors[middle:end])
        return integers[self._order.argsort()].T.contiguous(), scales

    def _round(self, part: slice, wanted: Tensor, errors: Tensor, integers: Tensor, steps: Tensor, zero: int) -> None:
        """Round the inputs of `part`, the last one first; each is a row [out] of these tensors."""
        for i in range(part.stop - 1, part.start - 1, -1):
            rounded = (wanted[i] / steps[i]).round_().clamp_(-zero, zero - 1)
            integers[i] = rounded + zero
            error = errors[i].addcmul_(rounded, steps[i], value=-1)
            wanted[part.start : i].addr_(self._corrections[i, part.start : i], error)


def squared_losses(weight: Tensor, rounded: Sequence[Tensor], rows: Tensor) -> Tensor:
    """|(W - Q) X|^2 for each Q of `rounded`, then |W X|^2, on inputs `rows` [rows, in]; sums over rows of weights."""
    changes = [(weight - each) @ rows.T for each in rounded]
    return torch.stack([product.square().sum() for product in (*changes, weight @ rows.T)])


def relative_losses(squared: Tensor) -> list[float]:
    """|(W - Q) X| / |W X| for each Q: the relative change of the layer's outputs, from sums of `squared_losses`."""
    found: list[float] = (squared[:-1] / squared[-1].clamp(min=1e-30)).sqrt().tolist()
    return found


def _halves(start: int, end: int) -> Iterator[tuple[int, int | None, int]]:
    """Pieces to be rounded, (start, None, end), and between them (start, middle, end): repair the first half."""
    if end - start <= _LEAF:
        yield start, None, end
        return
    middle = (start + end) // 2
    yield from _halves(middle, end)
    yield start, middle, end
    yield from _halves(start, middle)


def _corrections(hessian: Tensor, order: Tensor) -> Tensor:
    """C [in, in] in this order of inputs, of which only the part below the diagonal counts.

    Inputs that never occur get the mean energy. Where H has no factor even with damping, nothing is repaired.
    """
    for damping in _DAMPINGS:
        root = hessian[order[:, None], order].mT  # column by column, as LAPACK wants it: each step overwrites the last
        diagonal = root.diagonal()
        diagonal[diagonal <= 0] = diagonal.mean().clamp(min=1e-6)
        diagonal += damping * diagonal.mean()
        info = torch.empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(root, out=(root, info))
        if info == 0:
            root /= root.diagonal().clone()
            return root
    return torch.zeros_like(hessian)
