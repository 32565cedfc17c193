"""The reference model without its weights: each module reads them when it runs and drops them afterwards.

So a checkpoint can be compared with its bundle on a machine that could not hold it in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVL

_HEAD_ROWS = 8192


class _StoredEmbedding(nn.Module):
    """Rows of a memory-mapped table, converted to float32 after they are picked."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., H]."""
        return F.embedding(ids, self.table).float()


class _StoredHead(nn.Module):
    """A linear layer over a memory-mapped weight, converted to float32 some rows at a time."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight_rows = weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., V]."""
        starts = range(0, len(self.weight_rows), _HEAD_ROWS)
        return torch.cat([F.linear(x, self.weight_rows[i : i + _HEAD_ROWS].float()) for i in starts], dim=-1)


def streamed_model(checkpoint: Checkpoint) -> QwenVL:
    """The model of `checkpoint` for inference in float32, holding one module's weights at a time."""
    with torch.device("meta"):
        model = QwenVL(checkpoint.config).requires_grad_(False).eval()
    model.transformer.wte = _StoredEmbedding(checkpoint.tensor("transformer.wte.weight"))  # type: ignore[assignment]
    model.lm_head = _StoredHead(checkpoint.tensor("lm_head.weight"))  # type: ignore[assignment]
    for prefix, module in _units(model, ""):
        _attach(module, prefix, checkpoint)
    return model


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that own parameters; MultiheadAttention counts as one, since it reads its child's weights itself."""
    if isinstance(module, nn.MultiheadAttention):
        yield prefix, module
        return
    if any(True for _ in module.parameters(recurse=False)):
        yield prefix, module
    for name, child in module.named_children():
        yield from _units(child, f"{prefix}.{name}" if prefix else name)


def _attach(module: nn.Module, prefix: str, checkpoint: Checkpoint) -> None:
    recurse = isinstance(module, nn.MultiheadAttention)
    empty = dict(module.named_parameters(recurse=recurse))

    def put(parameters: dict[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, parameter)

    def load(*_: Any) -> None:
        tensors = {name: checkpoint.tensor(f"{prefix}.{name}").float() for name in empty}
        put({name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()})

    def drop(*_: Any) -> None:
        put(empty)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
