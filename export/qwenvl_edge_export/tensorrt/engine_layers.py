"""The layers of a built engine, as the builder's verbose log lists them, and what is wasteful about them.

The parsed network does not show what TensorRT fuses, copies and widens; the list after fusion does. It was read off
TensorRT-RTX 1.7.1, which prints it without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwenvl_edge.bundle.contract import PAST, PRESENT

_LAYER = re.compile(
    r"Name: (?P<name>\S+), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName"
)
_TENSOR = re.compile(r"Name: (?P<name>.+?), Dimensions: \[(?P<shape>[^]]*)\].*?Datatype: (?P<dtype>\w+)")
_PROFILE = re.compile(r"_myl(\d+)_\d+$")
_PRODUCT = re.compile(r"Fc|[Gg]emm|MulSum")
_INTEGERS = ("Int8", "UInt8", "Int4")
_HEADING = "Layers:"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a layer. dtype: TensorRT's word, such as "Half"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layer:
    """A layer after fusion; profile: number of the optimisation profile that it belongs to."""

    name: str
    kind: str
    profile: int
    inputs: tuple[TensorInfo, ...]
    constants: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def copies_cache(self) -> bool:
        """True if it reads nothing but whole caches and writes something else: a copy in another layout."""
        caches = all(tensor.name.startswith((PAST, PRESENT)) for tensor in self.inputs)
        kept = any(tensor.name.startswith(PRESENT) for tensor in self.outputs)
        return bool(self.inputs) and caches and not kept

    @property
    def widens_weight(self) -> bool:
        """True if it turns a matrix of integers into floats in memory and multiplies nothing."""
        matrices = any(tensor.dtype in _INTEGERS and len(tensor.shape) > 1 for tensor in self.constants)
        return matrices and not self.is_product

    @property
    def is_product(self) -> bool:
        """True if it multiplies by a constant matrix."""
        matrix = any(len(tensor.shape) > 1 and min(tensor.shape) > 1 for tensor in self.constants)
        return matrix and bool(self.inputs) and (self.kind == "gemm" or bool(_PRODUCT.search(self.name)))

    def multiplies(self, dtype: str) -> bool:
        """Tell whether it multiplies by a constant matrix of a type."""
        return self.is_product and any(tensor.dtype == dtype for tensor in self.constants if len(tensor.shape) > 1)

    @property
    def multiplies_integers(self) -> bool:
        """True if both sides of its product are 8-bit integers."""
        return self.multiplies("Int8") and any(tensor.dtype == "Int8" for tensor in self.inputs)


def read_layers(log: Iterable[str]) -> list[Layer]:
    """Return the layers that the log of one build lists; empty if it was not verbose."""
    lines = [line for message in log for line in message.splitlines()]
    if _HEADING not in (stripped := [line.strip() for line in lines]):
        return []
    found = (_LAYER.match(line) for line in stripped[stripped.index(_HEADING) + 1 :])
    return [_layer(match) for match in found if match is not None]


def share(layers: Sequence[Layer], good: Sequence[Layer]) -> float:
    """Part of the layers that are good ones; 1 where there are none."""
    return len(good) / len(layers) if layers else 1.0


def _layer(match: re.Match[str]) -> Layer:
    profile = _PROFILE.search(match["name"])
    parts = (_tensors(match[part]) for part in ("inputs", "constants", "outputs"))
    return Layer(match["name"], match["kind"], int(profile[1]) if profile else 0, *parts)


def _tensors(text: str) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            found["name"].split(" [profile")[0],
            tuple(int(size) for size in found["shape"].split(",") if size.strip()),
            found["dtype"],
        )
        for found in _TENSOR.finditer(text)
    )
