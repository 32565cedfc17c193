"""A small decoder of no published family: grouped key heads, a tied head, projections in three tensors.

`Grouped` has its roles and random tensors, and computes it in NumPy, in float64, token by token and head by head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwenvl_edge_export.graphs.roles import Decoder, DecoderLayer, InputGroup, LinearRole, Weight, joined, stored

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB, LAYERS = 64, 6, 2, 16, 96, 50, 2
EPS = 1e-5
FloatArray = npt.NDArray[Any]


@dataclass
class Grouped:
    """bias: on the projections. norms: of queries and keys. scale_length: log-scaled queries from there on."""

    bias: bool = False
    norms: bool = False
    scale_length: int | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(0)
        embedding = self._new("embed.weight", VOCAB, HIDDEN)
        layers = tuple(self._layer(f"layers.{i}") for i in range(LAYERS))
        self.decoder = Decoder(
            hidden_size=HIDDEN,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            vocab_size=VOCAB,
            norm_eps=EPS,
            embedding=embedding,
            layers=layers,
            final_norm=self._new("norm.weight", HIDDEN),
            head=LinearRole(stored("embed.weight", VOCAB, HIDDEN, called="head.weight")),
            scales_queries=self.scale_length is not None,
        )

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the made-up checkpoint."""
        return self.tensors[name]

    def _new(self, name: str, *shape: int) -> Weight:
        values = torch.randn(shape, generator=self._random)
        self.tensors[name] = values * shape[-1] ** -0.5 if len(shape) > 1 else 1 + 0.3 * values
        return stored(name, *shape)

    def _layer(self, name: str) -> DecoderLayer:
        heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
        weights = [self._new(f"{name}.{part}.weight", n * HEAD_DIM, HIDDEN) for part, n in heads.items()]
        biases = [self._new(f"{name}.{part}.bias", n * HEAD_DIM) for part, n in heads.items()]
        qkv = LinearRole(
            joined(f"{name}.qkv.weight", weights), joined(f"{name}.qkv.bias", biases) if self.bias else None
        )
        out = LinearRole(self._new(f"{name}.out.weight", HIDDEN, HEADS * HEAD_DIM))
        up, gate = (LinearRole(self._new(f"{name}.{part}.weight", INNER, HIDDEN)) for part in ("up", "gate"))
        down = LinearRole(self._new(f"{name}.down.weight", HIDDEN, INNER))
        norms = [self._new(f"{name}.{part}_norm.weight", HEAD_DIM) if self.norms else None for part in "qk"]
        return DecoderLayer(
            attention_norm=self._new(f"{name}.norm1.weight", HIDDEN),
            qkv=qkv,
            out=out,
            mlp_norm=self._new(f"{name}.norm2.weight", HIDDEN),
            up=up,
            gate=gate,
            down=down,
            groups=(
                InputGroup((qkv.weight,), "q"),
                InputGroup((out.weight,), "out"),
                InputGroup((up.weight, gate.weight), "up"),
                InputGroup((down.weight,), "down"),
            ),
            q_norm=norms[0],
            k_norm=norms[1],
        )

    def logits(self, embeds: FloatArray) -> FloatArray:
        """Embeddings [T, H] -> logits [T, V] of every position, without a cache."""
        x = embeds.astype(np.float64)
        for i in range(LAYERS):
            x = self._run_layer(f"layers.{i}", x)
        return _norm(x, self._get("norm.weight")) @ self._get("embed.weight").T

    def _get(self, name: str) -> FloatArray:
        return self.tensors[name].numpy().astype(np.float64)

    def _run_layer(self, name: str, x: FloatArray) -> FloatArray:
        y = _norm(x, self._get(f"{name}.norm1.weight"))
        q, k, v = (self._project(y, f"{name}.{part}") for part in "qkv")
        rows = []
        for t in range(len(x)):
            out = []
            for head in range(HEADS):
                shared = head // (HEADS // KV_HEADS)
                scores = np.array([q[t, head] @ k[s, shared] for s in range(t + 1)]) / np.sqrt(HEAD_DIM)
                weights = np.exp(scores - scores.max())
                out.append(weights / weights.sum() @ v[: t + 1, shared])
            rows.append(np.concatenate(out))
        x = x + np.array(rows) @ self._get(f"{name}.out.weight").T
        y = _norm(x, self._get(f"{name}.norm2.weight"))
        gate = y @ self._get(f"{name}.gate.weight").T
        up = y @ self._get(f"{name}.up.weight").T
        return x + (up * gate / (1 + np.exp(-gate))) @ self._get(f"{name}.down.weight").T

    def _project(self, y: FloatArray, name: str) -> FloatArray:
        """[T, H] -> [T, heads of this part, D], normalised, rotated and scaled where it should be."""
        rows = y @ self._get(f"{name}.weight").T
        if self.bias:
            rows = rows + self._get(f"{name}.bias")
        rows = rows.reshape(len(y), -1, HEAD_DIM)
        if name.endswith(".v"):
            return rows
        if self.norms:
            rows = _norm(rows, self._get(f"{name}_norm.weight"))
        cos, sin = (table[: len(y), None].astype(np.float64) for table in rope_tables(len(y)))
        first, second = np.split(rows, 2, axis=-1)
        rows = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        if name.endswith(".q") and self.scale_length is not None:
            scale = query_scale(len(y), self.scale_length)
            rows = rows * scale[:, None, None]
        return rows


def rope_tables(count: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines [count, D / 2] float32."""
    angles = np.arange(count)[:, None] / 100.0 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _norm(x: FloatArray, weight: FloatArray) -> FloatArray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def query_scale(count: int, length: int | None) -> npt.NDArray[np.float32]:
    """Factors [count] of the queries of the first positions: 1 without a length."""
    if length is None:
        return np.ones(count, np.float32)
    return np.maximum(1, np.log(np.arange(count) + 1.0) / np.log(length)).astype(np.float32)
