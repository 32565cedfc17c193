"""Scales for the inputs of the picture side's linear layers, taken while the reference model encodes pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVL
from qwenvl_edge_export.options import GraphPrecision
from qwenvl_edge_export.quantization.formats import InputScales
from qwenvl_edge_export.quantization.smoothquant import InputSample, smooth

_VISUAL = "transformer.visual"
_POOL = f"{_VISUAL}.attn_pool"
_ROWS = 128  # kept of each layer's inputs: the picture side's layers are all watched at once


@dataclass(frozen=True)
class _Tap:
    """Where a linear layer's inputs can be seen: `take` finds them among the arguments of `module`.

    name: the weight's in the graph. weight: reads it; the order of its rows does not matter here.
    """

    name: str
    module: str
    take: Callable[..., Tensor]
    weight: Callable[[], Tensor]


class VisionInputs:
    """Watches `model` encode pictures, and then chooses the scales.

    Args:
        model: a streamed model of `checkpoint`.
        pictures: how many will be encoded, in calls of one or more.
    """

    def __init__(self, checkpoint: Checkpoint, model: QwenVL, precision: GraphPrecision, pictures: int):
        self._taps = [tap for tap in _taps(checkpoint) if precision.format(tap.name) is not None]
        self._seen = {tap.name: InputSample(pictures, _ROWS) for tap in self._taps}
        self._hooks = [
            model.get_submodule(tap.module).register_forward_pre_hook(partial(self._add, tap)) for tap in self._taps
        ]

    def solve(self) -> Iterator[tuple[str, InputScales | None, dict[str, float]]]:
        """For each layer the name of its weight, and what `smooth` says."""
        for hook in self._hooks:
            hook.remove()
        for tap in self._taps:
            given, losses = smooth([tap.weight().float()], self._seen[tap.name])
            yield tap.name, given, losses

    def _add(self, tap: _Tap, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._seen[tap.name].add(tap.take(module, *arguments))


def vision_names(checkpoint: Checkpoint) -> list[str]:
    """The weights of the picture side's linear layers, as the graph calls them."""
    return [tap.name for tap in _taps(checkpoint)]


def _taps(checkpoint: Checkpoint) -> Iterator[_Tap]:
    def read(name: str) -> Callable[[], Tensor]:
        return lambda: checkpoint.tensor(name)

    def block_of(index: int) -> Callable[[], Tensor]:
        return lambda: checkpoint.tensor(f"{_POOL}.attn.in_proj_weight").chunk(3)[index]

    config = checkpoint.config.vision
    for i in range(config.layers):
        for layer in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            module = f"{_VISUAL}.transformer.resblocks.{i}.{layer}"
            suffix = ".qkv" if layer == "attn.in_proj" else ""
            yield _Tap(f"{module}.weight{suffix}", module, _first, read(f"{module}.weight"))
    if config.width != config.output_dim:
        yield _Tap(f"{_POOL}.kv_proj.weight", f"{_POOL}.kv_proj", _first, read(f"{_POOL}.kv_proj.weight"))
    attention = f"{_POOL}.attn"
    yield _Tap(f"{attention}.in_proj_weight.1", attention, lambda _, q, k, v: k, block_of(1))
    yield _Tap(f"{attention}.in_proj_weight.2", attention, lambda _, q, k, v: v, block_of(2))
    yield _Tap(f"{attention}.out_proj.weight", attention, _attended, read(f"{attention}.out_proj.weight"))
    projection = f"{_VISUAL}.proj"
    yield _Tap(f"{projection}.transposed", f"{_VISUAL}.ln_post", _normed, lambda: checkpoint.tensor(projection).T)


def _first(_: nn.Module, x: Tensor) -> Tensor:
    return x


def _attended(attention: nn.MultiheadAttention, *inputs: Tensor) -> Tensor:
    """What reaches out_proj, which MultiheadAttention applies without calling it: [N, Q, H]."""
    assert attention.in_proj_weight is not None
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).reshape(len(x), -1, attention.num_heads, attention.head_dim).transpose(1, 2)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
