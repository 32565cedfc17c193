"""A token of the full-size decoder without TensorRT: the plugin's attention and cuBLAS's products in one CUDA graph.

What an engine of float16 weights can reach on a GPU for which no TensorRT is at hand: each layer is RMS norm, the
product for q, k and v, KVCacheAttention through its C interface, the output product, RMS norm, two products and a gate,
and the product back; then the head. PyTorch calls cuBLAS. Weights are random; what is computed is compared with
PyTorch's own attention over the same cache.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from common import spread
from gpu_device import copy_timer, paired, timer
from gpu_kernels import Case, Library, random_call
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder; context: tokens in the cache. `TINY` is for a dry run on emulated kernels."""

    layers: int = 32
    heads: int = 32
    head_dim: int = 128
    inner: int = 11008
    vocabulary: int = 151_936
    context: int = 2048
    repeats: int = 15
    copy_bytes: int = 1 << 30

    @property
    def hidden(self) -> int:
        """Channels."""
        return self.heads * self.head_dim

    @property
    def weight_bytes(self) -> int:
        """Of all products, in float16."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.inner
        return 2 * (self.layers * layer + self.vocabulary * self.hidden)


TINY = Decoder(layers=2, heads=2, head_dim=64, inner=192, vocabulary=256, context=70, repeats=1, copy_bytes=1 << 16)


class Layer:
    """Weights of one layer, a cache, and a call of the kernels on them."""

    def __init__(self, sizes: Decoder, library: Library, device: str, seed: int):
        generator = torch.Generator(device).manual_seed(seed)

        def weight(rows: int, columns: int) -> torch.Tensor:
            values = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float16)
            return values.mul_(columns**-0.5)

        hidden = sizes.hidden
        self.norms = torch.ones(2, hidden, device=device, dtype=torch.float16)
        self.qkv, self.out = weight(3 * hidden, hidden), weight(hidden, hidden)
        self.up, self.down = weight(2 * sizes.inner, hidden), weight(hidden, sizes.inner)
        case = Case(1, (sizes.context,), sizes.heads, sizes.heads, sizes.head_dim, sizes.context + 64, torch.float16)
        self.call = random_call(case, device, seed=seed)
        self.library = library
        self.arguments, self.kept = library.arguments(self.call, self.call.past)

    def forward(self, x: torch.Tensor, stream: int) -> torch.Tensor:
        """[1, hidden] -> the same, by the plugin's attention."""
        self.call.qkv.copy_(self._projected(x).view_as(self.call.qkv))
        if status := self.library.attend(ctypes.byref(self.arguments), stream):
            raise RuntimeError(f"CUDA error {status}")
        return self._rest(x, self.kept[0].view(1, -1))

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The same after `forward`, by PyTorch's attention over the cache that the kernels have written."""
        case, call = self.call.case, self.call
        seen = case.lengths[0] + 1
        query = self._projected(x).view(-1, case.head_dim)[: case.heads].float()
        low, high = query.chunk(2, dim=-1)
        cos, sin = call.rope_cos[0], call.rope_sin[0]
        turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1) * call.query_scale[0, 0]
        key, value = (call.past[name][0, :, :seen] for name in ("key", "value"))
        attended = scaled_dot_product_attention(
            turned.half()[None, :, None].float(), key[None].float(), value[None].float()
        )
        return self._rest(x, attended.half().view(1, -1))

    def _projected(self, x: torch.Tensor) -> torch.Tensor:
        return linear(rms_norm(x, (x.shape[-1],), self.norms[0]), self.qkv)

    def _rest(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + linear(attended, self.out)
        gate, up = linear(rms_norm(x, (x.shape[-1],), self.norms[1]), self.up).chunk(2, dim=-1)
        return x + linear(silu(gate) * up, self.down)


def measure_token(library: Library, device: str, sizes: Decoder) -> dict[str, Any]:
    """Milliseconds of a token, the share of a copy's bandwidth at which weights and cache are read, and the error.

    difference: the largest of the last layer's output from PyTorch's, relative to the largest value.
    """
    layers = [Layer(sizes, library, device, seed) for seed in range(sizes.layers)]
    head = torch.randn(sizes.vocabulary, sizes.hidden, device=device, dtype=torch.float16).mul_(sizes.hidden**-0.5)
    start = torch.randn(1, sizes.hidden, device=device, dtype=torch.float16)

    def token(stream: int) -> torch.Tensor:
        x = start
        for layer in layers:
            x = layer.forward(x, stream)
        return linear(x, head)

    found = expected = start
    for layer in layers:
        found = layer.forward(found, torch.cuda.current_stream().cuda_stream if device == "cuda" else 0)
        expected = layer.reference(expected)
    difference = float((found - expected).abs().max() / expected.abs().max())
    copy, moved = copy_timer(device, sizes.copy_bytes)
    token_ms, copy_ms = paired(sizes.repeats, timer(device, token), copy)
    cache = 4 * sizes.layers * sizes.context * sizes.hidden
    read = sizes.weight_bytes + cache
    shares = [read / ours / (moved / theirs) for ours, theirs in zip(token_ms, copy_ms, strict=True)]
    return {
        "ms": spread(token_ms),
        "tokens_per_s": spread([1e3 / ms for ms in token_ms]),
        "share_of_copy": spread(shares),
        "read_bytes": read,
        "difference": difference,
    }
