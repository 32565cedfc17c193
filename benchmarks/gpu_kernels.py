"""The plugin's kernels beside a copy and beside PyTorch: the part "kernels" of benchmarks/gpu.py.

decode   one token over 2048 to 8192 cached ones, 32 heads of 128: bytes of keys and values read in a second, as a
         share of what a copy on the same device moves (bytes read and written). fp16 and int8 caches.
prefill  256 to 2048 tokens, fp16: time of PyTorch's flash attention on tensors that lie ready, by ours, which also
         turns queries and keys and writes the cache.

Every call is a CUDA graph of as many layers as `Sizes.layers`, each with a cache of its own, so that nothing is read
from the L2 cache and no launch is waited for. Needs PyTorch with CUDA; the kernels do not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import ratio, spread
from gpu_device import copy_timer, paired, timer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.kv_cache_attention import Arguments, Call, Case, Library, random_call  # noqa: E402


@dataclass(frozen=True)
class Sizes:
    """What is measured; `TINY` is for a dry run on the CPU, where a library emulates the kernels thread by thread."""

    heads: int = 32
    head_dim: int = 128
    layers: int = 16
    contexts: tuple[int, ...] = (2048, 4096, 8192)
    prompts: tuple[int, ...] = (256, 512, 1024, 2048)
    repeats: int = 15
    copy_bytes: int = 1 << 30


TINY = Sizes(heads=1, head_dim=64, layers=1, contexts=(70,), prompts=(20,), repeats=1, copy_bytes=1 << 16)


class Kernels:
    """The measurements of one library on one device."""

    def __init__(self, library: Library, device: str, sizes: Sizes):
        self.library = library
        self.device = device
        self.sizes = sizes

    def measure(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of figures, by what was measured."""
        return {"decode": self._decode(), "prefill": self._prefill()}

    def _decode(self) -> list[dict[str, Any]]:
        """Time and bandwidth of decoding, beside a copy's, for each context."""
        sizes = self.sizes
        copy, moved = copy_timer(self.device, sizes.copy_bytes)
        rows = []
        for context in sizes.contexts:
            half, int8 = (self._layers(self._decode_case(context, int8)) for int8 in (False, True))
            half_ms, int8_ms, copy_ms = paired(sizes.repeats, half, int8, copy)
            read = 2.0 * sizes.layers * context * sizes.heads * sizes.head_dim
            shares = {}
            for name, times, width in (("fp16", half_ms, 2), ("int8", int8_ms, 1 + 4 / sizes.head_dim)):
                shares[name] = spread([read * width / t / (moved / c) for t, c in zip(times, copy_ms, strict=True)])
            row = {
                "context": context,
                "us_per_layer": {"fp16": self._per_layer(half_ms), "int8": self._per_layer(int8_ms)},
                "share_of_copy": shares,
                "int8_vs_fp16": ratio(int8_ms, half_ms),
                "copy_gbps": spread([moved / c / 1e6 for c in copy_ms]),
            }
            rows.append(row)
            print(
                f"decode {context:5}: fp16 {row['us_per_layer']['fp16']['median']:7.1f} us a layer, "
                f"{shares['fp16']['median']:.2f} of a copy; int8 {row['int8_vs_fp16']['median']:.2f} times as fast"
            )
        return rows

    def _prefill(self) -> list[dict[str, Any]]:
        """Times of whole prompts, ours and those of PyTorch's flash attention."""
        sizes, rows = self.sizes, []
        for tokens in sizes.prompts:
            case = Case(tokens, (0,), sizes.heads, sizes.heads, sizes.head_dim, tokens, torch.float16)
            our_ms, their_ms = paired(sizes.repeats, self._layers(case), self._flash(tokens))
            flops = 2.0 * sizes.heads * tokens**2 * sizes.head_dim * sizes.layers  # of the causal half
            row = {
                "tokens": tokens,
                "us_per_layer": {"ours": self._per_layer(our_ms), "flash": self._per_layer(their_ms)},
                "vs_flash": ratio(our_ms, their_ms),
                "tflops": spread([flops / time / 1e9 for time in our_ms]),
            }
            rows.append(row)
            print(
                f"prefill {tokens:4}: {row['us_per_layer']['ours']['median']:7.1f} us a layer, "
                f"{row['vs_flash']['median']:.2f} times as fast as flash attention, "
                f"{row['tflops']['median']:.0f} TFLOP/s"
            )
        return rows

    def _layers(self, case: Case) -> Callable[[], float]:
        """One call after another, as a model's layers make them, each in memory of its own."""
        first = random_call(case, self.device)
        calls: list[Call] = [
            replace(first, qkv=first.qkv.clone(), past={name: cache.clone() for name, cache in first.past.items()})
            for _ in range(self.sizes.layers)
        ]
        filled: list[tuple[Arguments, list[torch.Tensor]]] = [self.library.arguments(c, c.past) for c in calls]

        def work(stream: int) -> object:
            for layer, _kept in filled:
                if status := self.library.attend(ctypes.byref(layer), stream):
                    raise RuntimeError(f"CUDA error {status}")
            return calls

        return timer(self.device, work)

    def _flash(self, tokens: int) -> Callable[[], float]:
        """PyTorch's scaled_dot_product_attention, causal, its flash backend and no other."""
        shape = (3, 1, self.sizes.heads, tokens, self.sizes.head_dim)
        layers = [torch.randn(shape, device=self.device).to(torch.float16) for _ in range(self.sizes.layers)]

        def work(_stream: int) -> None:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                for q, k, v in layers:
                    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        return timer(self.device, work)

    def _decode_case(self, context: int, int8: bool) -> Case:
        """One token behind `context` others."""
        sizes = self.sizes
        return Case(1, (context,), sizes.heads, sizes.heads, sizes.head_dim, context + 64, torch.float16, int8)

    def _per_layer(self, times_ms: list[float]) -> dict[str, float]:
        """Microseconds a layer."""
        return spread([1000 * time / self.sizes.layers for time in times_ms])
