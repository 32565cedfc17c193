"""Weights on fewer bits: symmetric integers with one float scale per block of inputs, or per row.

    w [out, in] -> q [out, in] uint8, scales [out, in / block];   w ~ (q - zero) * scale,   zero = 2 ^ (bits - 1)

Integers are stored unsigned with the zero in the middle, the layout of ONNX Runtime's MatMulNBits; flipping each one's
top bit gives the signed layout. Scales are positive, and as small as rounding without clipping allows: the negative
side has one step more than the positive one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from qwenvl_edge.errors import CheckpointError

BLOCK_SIZES = (32, 64, 128)
_PIECE_ELEMENTS = 1 << 18
_HALF_STEP = 2**-11  # half the distance of two float16 numbers, as a share of them


@dataclass(frozen=True)
class Blocks:
    """Weight-only integers of `bits` (4 or 8) with a scale for every `size` inputs."""

    bits: int
    size: int

    @property
    def zero(self) -> int:
        """The stored integer that stands for zero."""
        return 1 << (self.bits - 1)

    def names(self, name: str) -> tuple[str, str]:
        """Names of the integers and the scales of the weight `name` in a bundle."""
        return f"{name}.int{self.bits}", f"{name}.int{self.bits}.scales"

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that the layer `name` [out, in] divides into whole blocks.

        Raises:
            CheckpointError: it does not; names the sizes that do.
        """
        if shape[1] % self.size:
            fitting = [str(size) for size in BLOCK_SIZES if shape[1] % size == 0]
            raise CheckpointError(
                f"{name} has {shape[1]} inputs, which do not divide into blocks of {self.size}; "
                + (f"choose a block size of {' or '.join(fitting)}." if fitting else "keep it with --keep-fp16.")
            )

    def scales(self, weight: Tensor) -> Tensor:
        """Scales [out, in / size] of float32 `weight` [out, in]; not finite where a block is not.

        They are float32, rounded to a float16 number where there is one within 0.05 %, so that a runtime may read
        them in half the bytes.
        """
        blocks = _blocks(weight, self.size)
        low, high = torch.aminmax(blocks, dim=-1)
        scales = torch.maximum(low / -self.zero, high / (self.zero - 1))
        halves = scales.to(torch.float16).to(torch.float32)
        scales = halves.where((halves - scales).abs() <= scales * _HALF_STEP, scales)
        return scales.where(scales != 0, 1.0)

    def integers(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Integers uint8 [out, in] nearest to float32 `weight`, for these scales."""
        scaled = _blocks(weight, self.size) / scales[..., None]
        return scaled.round_().add_(self.zero).clamp_(0, 2 * self.zero - 1).to(torch.uint8).flatten(1)

    def pack(self, integers: Tensor) -> Tensor:
        """Bytes [out, in * bits / 8]; of two 4-bit integers the first is the low half."""
        if self.bits == 8:
            return integers
        pairs = integers.view(torch.int16)  # the second integer in the high byte
        return (pairs | pairs >> 4).to(torch.uint8)

    def unpack(self, packed: Tensor) -> Tensor:
        """The integers uint8 [out, in] of packed bytes."""
        if self.bits == 8:
            return packed
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)

    def floats(self, integers: Tensor, scales: Tensor) -> Tensor:
        """The float32 weight [out, in] that integers and scales stand for."""
        centred = integers.to(torch.float32).sub_(self.zero)
        return (_blocks(centred, self.size) * scales[..., None]).flatten(1)


@dataclass(frozen=True)
class Integers:
    """A weight that is quantized already: packed bytes [out, in * bits / 8], scales [out, in / size], their layout."""

    packed: Tensor
    scales: Tensor
    blocks: Blocks

    def floats(self) -> Tensor:
        """The float32 weight [out, in] that it stands for."""
        return self.blocks.floats(self.blocks.unpack(self.packed), self.scales.to(torch.float32))


def join_rows(parts: Sequence[Integers]) -> Integers:
    """One weight of the output rows of several, which have one layout, one after another."""
    (first, *rest) = parts
    if not rest:
        return first
    packed, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("packed", "scales"))
    return Integers(packed, scales, first.blocks)


@dataclass(frozen=True)
class InputScales:
    """A layer's inputs as calibration saw them: divided by `factors` float32 [in], they lie within 127 * `scale`."""

    factors: Tensor
    scale: float


GivenScales: TypeAlias = Callable[[str], InputScales | None]
"""The scales of the inputs of the layer whose weight has a name, if they were calibrated."""


def no_scales(name: str) -> InputScales | None:
    """No layer's inputs were calibrated."""
    return None


@dataclass(frozen=True)
class _SignedRows:
    """8-bit signed integers, within 127 of zero, with one scale per output row."""

    steps = 127

    def scales(self, weight: Tensor) -> Tensor:
        """Scales [out] of float32 `weight` [out, in]; not finite where a row is not."""
        scales = weight.abs().amax(dim=1) / self.steps
        return scales.where(scales != 0, 1.0)

    def integers(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Integers int8 [out, in] nearest to float32 `weight`, for these scales."""
        return (weight / scales[:, None]).round_().clamp_(-self.steps, self.steps).to(torch.int8)

    def floats(self, integers: Tensor, scales: Tensor) -> Tensor:
        """The float32 weight [out, in] that integers and scales stand for."""
        return integers.to(torch.float32) * scales[:, None]


class Rows(_SignedRows):
    """Weights beside which the graph quantizes the activations when it runs, to unsigned bytes."""


class StaticRows(_SignedRows):
    """Weights beside which inputs are signed integers too, where `InputScales` are given."""


WeightFormat = Blocks | Rows | StaticRows | None
"""Form in which a linear layer's weight is stored; None is the graph's float type."""


def _blocks(x: Tensor, size: int) -> Tensor:
    """[out, in] -> [out, in / size, size]."""
    return x.view(len(x), -1, size)


def row_pieces(weight: Tensor) -> Sequence[Tensor]:
    """`weight` [out, in] as pieces of some rows, small enough to stay in a processor's cache as float32."""
    return torch.split(weight, max(1, _PIECE_ELEMENTS // weight.shape[1]))


def check_finite(name: str, values: Tensor) -> None:
    """Check values read from the checkpoint's tensor `name`.

    Raises:
        CheckpointError: one is NaN or infinite.
    """
    if not torch.isfinite(values).all():
        raise CheckpointError(f"the tensor {name} holds NaN or infinity; the checkpoint is broken.")
