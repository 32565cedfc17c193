"""Linear layers that GPTQ or AWQ stored as integers, seen as the float weights they stand for.

    w [out, in] = (q - zero[group of the input]) * scale[group of the input]

GPTQ packs qweight int32 [in * bits / 32, out] along the inputs and qzeros int32 [groups, out * bits / 32] along the
outputs, the first value in the lowest bits (three bits run across words). Zero points are stored less one, modulo
2 ** bits, or as they are ("gptq_v2"). g_idx int32 [in], each input's group, may be absent where inputs are in order.
AWQ (its GEMM layout) packs qweight int32 [in, out / 8] and qzeros int32 [groups, out / 8] along the outputs, eight of
them interleaved as 0 2 4 6 1 3 5 7. Both have scales [groups, out].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.quantization_config import AWQ, GPTQ, UNKNOWN, Quantization, trace_quantization
from qwenvl_edge_export.checkpoint.shards import Source
from qwenvl_edge_export.checkpoint.tensor_names import QUANTIZED_PARTS
from qwenvl_edge_export.weight_formats import Blocks, Integers, check_finite

BITS = (2, 3, 4, 8)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Of eight outputs in a word of AWQ, the place that each has.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_PIECE_ELEMENTS = 1 << 22


class QuantizedLayer(ABC):
    """One layer, as the source of the float32 tensor `<layer>.weight` [out, in]; see the module for `parts`."""

    bits: int

    def __init__(self, layer: str, parts: Mapping[str, Source], shape: tuple[int, int], form: Quantization):
        self.name = f"{layer}.weight"
        self.shape = shape
        self._layer, self._parts, self._form = layer, parts, form
        self._exact: dict[torch.dtype, bool] = {}
        groups, width = self._described("scales", 2)
        if width != shape[0] or groups < 1:
            raise self._misshapen("scales")
        self.groups = groups
        self.group = self._group_size()

    def describe(self) -> tuple[tuple[int, ...], torch.dtype]:
        """See Source."""
        return self.shape, torch.float32

    def read(self) -> Tensor:
        """See Source."""
        weight = torch.empty(self.shape)
        zeros, scales = self._zeros().T.to(torch.float32), self._scales().T
        for start, end in self._pieces():
            piece = weight[start:end]
            piece.copy_(self._values(start, end))
            if self._in_order:
                for group in range(self.groups):
                    inputs = piece[:, group * self.group : (group + 1) * self.group]
                    inputs.sub_(zeros[start:end, group, None]).mul_(scales[start:end, group, None])
            else:
                piece.sub_(zeros[start:end, self._index]).mul_(scales[start:end, self._index])
        return weight

    def obstacle(self, blocks: Blocks, dtype: torch.dtype) -> str:
        """The part of the layer that `blocks` with scales of `dtype` cannot hold exactly; empty if they can."""
        if not self._in_order:
            return "the order of its inputs (desc_act)"
        low, high = self._zero_range
        if low < 0 or high > blocks.zero or (1 << self.bits) - 1 - low > blocks.zero - 1:
            return "its zero points (it is asymmetric)" if self.bits <= blocks.bits else f"its {self.bits} bits"
        if self.group % blocks.size and self.group != self.shape[1]:
            return f"its groups of {self.group} inputs"
        if self.shape[1] % blocks.size:
            return f"its {self.shape[1]} inputs"
        return "" if self._has_scales_of(dtype) else "its scales"

    def integers(self, blocks: Blocks) -> Integers:
        """The stored integers, moved so that their zero is that of `blocks`, and the stored scales.

        `obstacle` must have found none.
        """
        packed = torch.empty(self.shape[0], self.shape[1] * blocks.bits // 8, dtype=torch.uint8)
        moves = blocks.zero - self._zeros().T
        for start, end in self._pieces():
            move = moves[start:end].repeat_interleave(self.group, dim=1)[:, : self.shape[1]]
            packed[start:end] = blocks.pack(self._values(start, end).add(move).to(torch.uint8))
        scales = self._scales().T[:, self._index[:: blocks.size]].contiguous()
        return Integers(packed, scales, blocks)

    @abstractmethod
    def _values(self, start: int, end: int) -> Tensor:
        """The integers int16 [end - start, in] of some outputs; both ends are multiples of 32, or the last output."""

    @abstractmethod
    def _zeros(self) -> Tensor:
        """The zero points int16 [groups, out]."""

    def _scales(self) -> Tensor:
        """The scales float32 [groups, out]."""
        scales = self._parts["scales"].read().float()
        check_finite(f"{self._layer}.scales", scales)
        return scales

    @cached_property
    def _zero_range(self) -> tuple[int, int]:
        low, high = self._zeros().aminmax()
        return int(low), int(high)

    def _has_scales_of(self, dtype: torch.dtype) -> bool:
        """Tell if no scale is negative, and none changes when it is stored in `dtype`."""
        if dtype not in self._exact:
            scales = self._scales()
            self._exact[dtype] = not (scales < 0).any() and torch.equal(scales.to(dtype).float(), scales)
        return self._exact[dtype]

    @cached_property
    def _natural(self) -> Tensor:
        """The group of each input where they are in order."""
        return torch.arange(self.shape[1]) // self.group

    @cached_property
    def _index(self) -> Tensor:
        """The group of each input, int64 [in]."""
        if "g_idx" not in self._parts:
            return self._natural
        if self._described("g_idx", 1) != (self.shape[1],):
            raise self._misshapen("g_idx")
        index = self._parts["g_idx"].read().long()
        if not self._form.reordered and not index.any():
            return self._natural  # written by programs that do not use it
        if int(index.min()) < 0 or int(index.max()) >= self.groups:
            raise CheckpointError(
                f"{self._layer}.g_idx names groups beyond the {self.groups} that there are; the checkpoint is broken."
            )
        return index

    @property
    def _in_order(self) -> bool:
        return torch.equal(self._index, self._natural)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        rows = max(32, _PIECE_ELEMENTS // self.shape[1] // 32 * 32)
        for start in range(0, self.shape[0], rows):
            yield start, min(start + rows, self.shape[0])

    def _group_size(self) -> int:
        inputs, size = self.shape[1], self._form.group or 0
        if self.groups == 1:
            return inputs
        if size > 0 and -(-inputs // size) == self.groups:
            return size
        if inputs % self.groups:
            raise self._misshapen("scales")
        return inputs // self.groups

    def _described(self, part: str, dims: int) -> tuple[int, ...]:
        shape, dtype = self._parts[part].describe()
        wanted = FLOATS if part == "scales" else (torch.int32, torch.int64)
        if len(shape) != dims or dtype not in wanted:
            raise self._misshapen(part)
        return shape

    def _misshapen(self, part: str) -> CheckpointError:
        shape, dtype = self._parts[part].describe()
        return CheckpointError(
            f"{self._layer}.{part} is {list(shape)[:8]} of {str(dtype).removeprefix('torch.')}, which fits no layer "
            f"{list(self.shape)} of GPTQ or AWQ; the checkpoint is broken, or of another layout."
        )


class GptqLayer(QuantizedLayer):
    """A layer in GPTQ's layout."""

    def __init__(self, layer: str, parts: Mapping[str, Source], shape: tuple[int, int], form: Quantization):
        super().__init__(layer, parts, shape, form)
        rows, _ = self._described("qweight", 2)
        self.bits = rows * 32 // shape[1]
        if self.bits not in BITS or rows * 32 != shape[1] * self.bits:
            raise self._misshapen("qweight")

    def _values(self, start: int, end: int) -> Tensor:
        return unpack(self._parts["qweight"].read()[:, start:end].T, self.bits)

    def _zeros(self) -> Tensor:
        half = 1 << self.bits - 1
        shape = self.groups, self.shape[0]
        if "qzeros" not in self._parts:
            return torch.full(shape, half, dtype=torch.int16)
        if self._described("qzeros", 2) != (self.groups, self.shape[0] * self.bits // 32):
            raise self._misshapen("qzeros")
        stored = unpack(self._parts["qzeros"].read(), self.bits)
        plain = self._form.plain_zeros
        if self._form.symmetric and (stored == stored[0, 0]).all() and int(stored[0, 0]) in (half, half - 1):
            plain = int(stored[0, 0]) == half  # whatever the record's word for it: symmetric is in the middle
        return stored if plain else (stored + 1) % (2 * half)


class AwqLayer(QuantizedLayer):
    """A layer in AWQ's GEMM layout, of four bits."""

    bits = 4

    def _values(self, start: int, end: int) -> Tensor:
        return _interleaved(self._parts["qweight"].read()[:, start // 8 : end // 8]).T

    def _zeros(self) -> Tensor:
        if self._described("qzeros", 2) != (self.groups, self.shape[0] // 8):
            raise self._misshapen("qzeros")
        return _interleaved(self._parts["qzeros"].read())


def unpack(words: Tensor, bits: int) -> Tensor:
    """The integers int16 [..., N * 32 / bits] in the words int32 [..., N], the first in the lowest bits."""
    data = words.to(torch.int32).contiguous().view(torch.uint8)  # little-endian bytes [..., 4 N]
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return (data[..., None] >> shifts & (1 << bits) - 1).flatten(-2).to(torch.int16)
    single = (data[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)
    each = single.reshape(*words.shape[:-1], -1, bits).to(torch.int16)
    return (each << torch.arange(bits, dtype=torch.int16)).sum(-1, dtype=torch.int16)


def _interleaved(words: Tensor) -> Tensor:
    """The integers int16 [M, 8 N] of AWQ's words int32 [M, N]."""
    return unpack(words, 4).view(len(words), -1, 8)[..., _AWQ_PLACES].flatten(-2)


def open_layer(layer: str, parts: Mapping[str, Source], shape: tuple[int, ...], form: Quantization) -> QuantizedLayer:
    """The layer whose float weight has `shape`; the shape of its integers tells which layout they have.

    Raises:
        CheckpointError: a part is missing, or does not fit the shape.
    """
    optional = ("qzeros",) if form.symmetric and form.method == GPTQ else ()
    if missing := [part for part in ("qweight", "qzeros", "scales") if part not in parts and part not in optional]:
        names = ", ".join(f"{layer}.{part}" for part in missing)
        raise CheckpointError(f"the checkpoint lacks {names}; download it again.")
    outputs, inputs = (*shape, 0)[:2]
    found = parts["qweight"].describe()[0]
    kind = AwqLayer if found == (inputs, outputs // 8) and outputs % 8 == 0 else GptqLayer
    if len(shape) != 2 or (kind is GptqLayer and found[1:] != (outputs,)):
        raise CheckpointError(
            f"{layer}.qweight is {list(found)[:8]}, which fits no layer {list(shape)} of GPTQ or AWQ; the checkpoint "
            "is broken, or of another layout."
        )
    return kind(layer, parts, (outputs, inputs), form)


def as_float_weights(
    folder: Path, where: dict[str, Source], expected: Mapping[str, tuple[int, ...]], form: Quantization | None
) -> dict[str, Source]:
    """The tensors of a checkpoint with quantized layers under the names of the float model, which are `expected`.

    Raises:
        CheckpointError: it is quantized in a way that cannot be imported, a layer lacks a part or is misshapen, or has
            a bias that the float model does not know.
    """
    described = {name: source.describe() for name, source in where.items()}
    if all(name in described and described[name][1] in FLOATS for name in expected):
        return where  # whatever config.json says: some methods quantize when a model is loaded
    if form is None or form.refusal:
        form = form or trace_quantization(folder, {name: dtype for name, (_, dtype) in described.items()})
        if form is not None and form.refusal:
            raise CheckpointError(form.refusal)
    found = dict(where)
    for name in where:
        layer = name.removesuffix(".qweight")
        if layer == name or f"{layer}.weight" not in expected:
            continue
        parts = {part: found.pop(f"{layer}.{part}") for part in QUANTIZED_PARTS if f"{layer}.{part}" in found}
        found[f"{layer}.weight"] = open_layer(layer, parts, expected[f"{layer}.weight"], form or UNKNOWN)
        bias = f"{layer}.bias"
        if bias in found and bias not in expected and found.pop(bias).read().any():
            raise CheckpointError(f'{bias} in the checkpoint "{folder}" is not zero; the float model has no such bias.')
    return found


def describe_form(layers: Sequence[QuantizedLayer]) -> str:
    """The layouts, bits and groups of some layers in words, such as "GPTQ, 4 bits, groups of 128"."""
    if not layers:
        return ""
    methods = sorted({AWQ if isinstance(layer, AwqLayer) else GPTQ for layer in layers})
    bits = sorted({str(layer.bits) for layer in layers})
    whole = all(layer.groups == 1 for layer in layers)
    groups = "one group" if whole else f"groups of {' or '.join(sorted({str(layer.group) for layer in layers})[:3])}"
    return f"{' and '.join(methods)}, {' or '.join(bits)} bits, {groups}"
