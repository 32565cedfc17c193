"""Checkpoints quantized by GPTQ (Qwen-VL-Chat-Int4): their linear layers, seen as the float weights they stand for.

A layer [out, in] is stored as qweight int32 [in / 8, out] (of eight inputs the first has the lowest bits), scales
float16 [in / group, out], qzeros int32 [in / group, out / 8] (zero points less one), g_idx int32 [in] (each input's
group) and bias [out], which is there for every layer and zero where the float model has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.shards import Source
from qwenvl_edge_export.weight_formats import BLOCK_SIZES, Blocks, Integers, check_finite

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_SYMMETRIC_ZEROS = 0x77777777  # eight times seven: a zero point of eight
_BITS = 4


class GptqLayer:
    """One layer, as the source of the float32 tensor `<layer>.weight`."""

    def __init__(self, layer: str, where: Mapping[str, Source]):
        self._name = f"{layer}.weight"
        self._parts = {part: where[f"{layer}.{part}"] for part in _PARTS}
        (rows, outputs), _ = self._parts["qweight"].describe()
        groups = self._parts["scales"].describe()[0][0]
        self.shape = (outputs, rows * 32 // _BITS)
        self.group = self.shape[1] // max(groups, 1)

    def describe(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype, without reading the values."""
        return self.shape, torch.float32

    def read(self) -> torch.Tensor:
        """The float weight, computed."""
        return self.integers().floats()

    def integers(self) -> Integers:
        """The stored integers and scales, only in another order.

        Raises:
            CheckpointError: the layer has zero points, an order of inputs or a group size that is not supported.
        """
        group, problem = torch.arange(self.shape[1]) // self.group, None
        if self.group not in BLOCK_SIZES:
            problem = f"groups of {self.group} inputs"
        elif not torch.equal(self._read("g_idx").long(), group):
            problem = "inputs out of order (desc_act)"
        elif not (self._read("qzeros") == _SYMMETRIC_ZEROS).all():
            problem = "zero points other than 8 (it is not symmetric)"
        if problem:
            raise CheckpointError(f"{self._name} is quantized with {problem}, which cannot be imported as it is.")
        packed = self._read("qweight")
        shifts = torch.arange(0, 32, _BITS, dtype=torch.int32)
        values = (packed[:, None] >> shifts[:, None] & 15).to(torch.uint8).flatten(0, 1).T.contiguous()
        scales = self._read("scales").float().T.contiguous()
        check_finite(self._name.replace(".weight", ".scales"), scales)
        blocks = Blocks(_BITS, self.group)
        return Integers(blocks.pack(values), scales, blocks)

    def _read(self, part: str) -> torch.Tensor:
        return self._parts[part].read()


def as_float_weights(folder: Path, where: dict[str, Source], expected: Mapping[str, object]) -> dict[str, Source]:
    """The tensors of a checkpoint with quantized layers under the names of the float model, which are `expected`.

    Raises:
        CheckpointError: a layer lacks a part, or has a bias that the float model does not know.
    """
    layers = [name.removesuffix(".qweight") for name in where if name.endswith(".qweight")]
    found = dict(where)
    for layer in layers:
        if missing := [f"{layer}.{part}" for part in _PARTS if f"{layer}.{part}" not in where]:
            raise CheckpointError(f'the checkpoint "{folder}" lacks {", ".join(missing)}; download it again.')
        for part in _PARTS:
            del found[f"{layer}.{part}"]
        found[f"{layer}.weight"] = GptqLayer(layer, where)
        bias = f"{layer}.bias"
        if bias in found and bias not in expected and found.pop(bias).read().any():
            raise CheckpointError(f'{bias} in the checkpoint "{folder}" is not zero; the float model has no such bias.')
    return found
