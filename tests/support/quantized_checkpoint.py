"""Packers of the layouts in which GPTQ and AWQ store linear layers, in NumPy and a value at a time where it is plainer.

They are written from the layouts' descriptions and share nothing with the readers that they test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from support.random_checkpoint import config_dict, random_tensors

CONFIG = config_dict(intermediate_size=512)
LAYERS = [
    f"transformer.h.{i}.{name}"
    for i in range(2)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Layout:
    """A layout: see the options of the quantizing programs, which have the same names."""

    method: str = "gptq"
    bits: int = 4
    group: int = 128
    sym: bool = True
    desc_act: bool = False
    v2: bool = False
    g_idx: bool = True
    qzeros: bool = True
    scales: torch.dtype = torch.float16

    @property
    def config(self) -> dict[str, Any]:
        """The record in config.json."""
        if self.method == "awq":
            record = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": self.group, "zero_point": True}
        else:
            form = {"checkpoint_format": "gptq_v2" if self.v2 else "gptq", "desc_act": self.desc_act}
            record = {"quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.sym} | form
        return CONFIG | {"quantization_config": record}


def bit_stream(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers [N, M] as words int32 [N * bits / 32, M]: every column's values one after another, lowest bits first."""
    words = np.zeros((len(values) * bits // 32, values.shape[1]), np.uint64)
    for place, row in enumerate(values.astype(np.uint64)):
        word, shift = divmod(place * bits, 32)
        words[word] |= row << np.uint64(shift) & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[word + 1] |= row >> np.uint64(32 - shift)
    return words.astype(np.uint32).view(np.int32)


def awq_words(values: np.ndarray) -> np.ndarray:
    """Integers [N, M] as words int32 [N, M / 8] in AWQ's order."""
    words = np.zeros((len(values), values.shape[1] // 8), np.uint32)
    for nibble, column in enumerate(AWQ_ORDER):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def quantized_layer(shape: tuple[int, int], layout: Layout, random: np.random.Generator):
    """Parts of a layer with float weight [out, in], all random, and that weight float32."""
    outputs, inputs = shape
    steps, size = 1 << layout.bits, inputs if layout.group == -1 else layout.group
    groups = -(-inputs // size)
    integers = random.integers(0, steps, (inputs, outputs))
    zeros = np.full((groups, outputs), steps // 2) if layout.sym else random.integers(0, steps, (groups, outputs))
    values = torch.from_numpy(random.uniform(0.002, 0.02, (groups, outputs))) / steps * 16
    scales = values.to(layout.scales)
    index = np.arange(inputs) // size
    if layout.desc_act:
        index = index[random.permutation(inputs)]
    weight = ((integers - zeros[index]) * scales.double().numpy()[index]).T
    if layout.method == "awq":
        return {"qweight": awq_words(integers), "qzeros": awq_words(zeros), "scales": scales}, weight, integers
    stored = zeros if layout.v2 else (zeros - 1) % steps
    parts = {"qweight": bit_stream(integers, layout.bits), "scales": scales}
    if layout.qzeros:
        parts["qzeros"] = np.ascontiguousarray(bit_stream(stored.T, layout.bits).T)
    if layout.g_idx:
        parts["g_idx"] = index.astype(np.int32)
    return parts, weight, integers


def quantized_tensors(layout: Layout) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Tensors of a checkpoint whose decoder is quantized, and the float weights of those layers."""
    random = np.random.default_rng(0)
    tensors = {name: tensor.half() for name, tensor in random_tensors(CONFIG).items()}
    floats = {}
    for layer in LAYERS:
        outputs, inputs = tensors.pop(f"{layer}.weight").shape
        parts, floats[layer], _ = quantized_layer((outputs, inputs), layout, random)
        for part, values in parts.items():
            tensors[f"{layer}.{part}"] = values if isinstance(values, torch.Tensor) else torch.from_numpy(values.copy())
        tensors.setdefault(f"{layer}.bias", torch.zeros(outputs, dtype=torch.float16))
    return tensors, floats
