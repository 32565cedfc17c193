"""Roles of weights: what graphs, calibration and bundles ask for, and which tensors of a checkpoint play them.

A family makes this table from its configuration alone, before a checkpoint's weights are there. Nothing else knows
how a checkpoint names its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Tensors: TypeAlias = Callable[[str], Tensor]
"""Reads a tensor of the checkpoint by its name there."""


@dataclass(frozen=True)
class Weight:
    """A tensor of a graph in the checkpoint's floats; its values are read when they are needed.

    name: in graphs and bundles. shape: of the values. read: makes them of a checkpoint's tensors.
    sources: the checkpoint's tensors whose rows, one after another, are the values; empty where these are computed.
    wide: stored in float32 whatever the graph's float type is, because the graph computes in float32 with it.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[Tensors], Tensor]
    sources: tuple[str, ...] = ()
    wide: bool = False


def stored(name: str, *shape: int, called: str | None = None) -> Weight:
    """The checkpoint's tensor `name` as it is; a graph calls it so too, or `called`."""
    return Weight(called or name, shape, lambda tensors: tensors(name), (name,))


def joined(name: str, parts: Sequence[Weight]) -> Weight:
    """The rows of several stored tensors, one after another: three projections as one matrix [out, in], or a bias."""
    rows = sum(part.shape[0] for part in parts)
    sources = tuple(source for part in parts for source in part.sources)
    return Weight(
        name, (rows, *parts[0].shape[1:]), lambda tensors: torch.cat([part.read(tensors) for part in parts]), sources
    )


@dataclass(frozen=True)
class LinearRole:
    """A linear layer y = x W^T + b: weight [out, in] and bias [out]."""

    weight: Weight
    bias: Weight | None = None

    @property
    def outputs(self) -> int:
        """Width of y."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class NormRole:
    """A layer norm: weight and bias [width]; an RMS norm has no bias."""

    weight: Weight
    bias: Weight | None = None


Role: TypeAlias = Weight | NormRole | LinearRole


def _first(module: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return x


@dataclass(frozen=True)
class InputGroup:
    """Weights of linear layers that read the same inputs, which calibration can watch.

    module: the module of the reference that they reach, by its path in a decoder layer or in the whole network.
    take: finds them [..., in] among the module and its arguments.
    """

    weights: tuple[Weight, ...]
    module: str
    take: Callable[..., Tensor] = _first


@dataclass(frozen=True)
class DecoderLayer:
    """The weights of one decoder layer; norms are RMS norms with a weight alone.

    qkv: [heads * D + 2 * kv_heads * D, H], queries before keys before values. q_norm, k_norm: [D], where queries and
    keys of each head are normalised before their rotary embedding. The MLP is down(up(x) * silu(gate(x))).
    groups: the layer's linear weights by the inputs that they share, in the order of computation.
    """

    attention_norm: Weight
    qkv: LinearRole
    out: LinearRole
    mlp_norm: Weight
    up: LinearRole
    gate: LinearRole
    down: LinearRole
    groups: tuple[InputGroup, ...]
    q_norm: Weight | None = None
    k_norm: Weight | None = None

    def weights(self) -> Iterator[Weight]:
        """All of them."""
        yield from (self.attention_norm, self.mlp_norm)
        yield from (norm for norm in (self.q_norm, self.k_norm) if norm is not None)
        for role in (self.qkv, self.out, self.up, self.gate, self.down):
            yield from (weight for weight in (role.weight, role.bias) if weight is not None)


@dataclass(frozen=True)
class Decoder:
    """Dimensions, switches and weights of a decoder. Biases and norms of queries and keys are there or None.

    heads is a multiple of kv_heads; heads * head_dim need not be hidden_size. head: its weight reads the embedding's
    tensor where the two are tied. scales_queries: True if queries are multiplied by factors that
    the host gives, as log-n attention needs. deepstack_layers: so many of the first layers are followed by an addition
    of rows that the host gives.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    embedding: Weight
    layers: tuple[DecoderLayer, ...]
    final_norm: Weight
    head: LinearRole
    scales_queries: bool = False
    deepstack_layers: int = 0

    @property
    def q_width(self) -> int:
        """Channels of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all keys, or values, of a token."""
        return self.kv_heads * self.head_dim

    def weights(self) -> Iterator[Weight]:
        """All weights but the embedding."""
        for layer in self.layers:
            yield from layer.weights()
        yield from (self.final_norm, self.head.weight)

    def linear_weights(self) -> Iterator[Weight]:
        """The weights of all linear layers, the head's last."""
        for layer in self.layers:
            for group in layer.groups:
                yield from group.weights
        yield self.head.weight
