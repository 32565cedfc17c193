"""Stored forms of weights: the tensors that a weight becomes in a data file, and the bytes of each.

Values are read, converted and yielded a piece at a time, so that memory does not follow the model's size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.files.thread_map import in_order
from qwenvl_edge_export.graphs.roles import Tensors, Weight
from qwenvl_edge_export.weight_formats import Integers, check_finite

TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
_PIECE_ELEMENTS = 1 << 20

Pieces: TypeAlias = Iterator[memoryview]
GivenIntegers: TypeAlias = Callable[[Weight], Integers | None]
"""The integers of a weight that is quantized already; None where it is to be rounded to nearest."""


def no_integers(weight: Weight) -> Integers | None:
    """Round every weight to nearest."""
    return None


@dataclass(frozen=True)
class Slot:
    """Name, shape and type of one tensor in a data file."""

    name: str
    shape: tuple[int, ...]
    dtype: ir.DataType

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.ceil(math.prod(self.shape) * self.dtype.itemsize)


class Stored(ABC):
    """Something that a data file holds as one or more tensors, one after another."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The weight's name, or a name of its own for something stored beside weights."""

    @property
    @abstractmethod
    def slots(self) -> Sequence[Slot]:
        """Its tensors, in order."""

    @abstractmethod
    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """The bytes of each tensor, in pieces. Each must be exhausted before the next one is taken.

        Raises:
            CheckpointError: a value is NaN or infinite, or too large for its type.
        """


@dataclass(frozen=True)
class StoredWeight(Stored):
    """A weight in one form or another."""

    weight: Weight

    @property
    def name(self) -> str:
        """See Stored."""
        return self.weight.name


@dataclass(frozen=True)
class StoredFloats(StoredWeight):
    """A weight in the graph's float type."""

    dtype: ir.DataType

    @property
    def slots(self) -> Sequence[Slot]:
        """See Stored."""
        return (Slot(self.weight.name, self.weight.shape, self.dtype),)

    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """See Stored."""
        yield float_pieces(self.weight.name, self.weight.read(tensors), TORCH_DTYPES[self.dtype])


@dataclass(frozen=True)
class StoredConstant(Stored):
    """A tensor whose bytes all have one value."""

    slot: Slot
    byte: int

    @property
    def name(self) -> str:
        """See Stored."""
        return self.slot.name

    @property
    def slots(self) -> Sequence[Slot]:
        """See Stored."""
        return (self.slot,)

    def pieces(self, tensors: Tensors, integers: GivenIntegers) -> Iterator[Pieces]:
        """See Stored."""
        yield iter([memoryview(bytes([self.byte]) * self.slot.size_bytes)])


ZERO_POINT = StoredConstant(Slot("zero.static", (), ir.DataType.INT8), 0)
"""The zero point of signed integers, for all inputs with given scales."""


def float_pieces(name: str, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Pieces:
    """The values of `tensor` as little-endian floats, in pieces of at most 4 MiB.

    Raises:
        CheckpointError: a value is NaN or infinite, or too large for `dtype`.
    """

    def narrowed(piece: Tensor) -> memoryview:
        values = piece.to(torch.float32)
        check_finite(name, values)
        narrow = values.to(dtype)
        if dtype != torch.float32 and not torch.isfinite(narrow).all():
            raise CheckpointError(
                f"the tensor {name} holds values beyond {dtype}'s range ({torch.finfo(dtype).max:g}); "
                "export in bf16 or fp32."
            )
        return tensor_bytes(narrow)

    return in_order(narrowed, torch.split(tensor.detach().reshape(-1), _PIECE_ELEMENTS))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous and in the host's memory."""
    return tensor.contiguous().view(torch.uint8).reshape(-1).cpu().numpy().data
