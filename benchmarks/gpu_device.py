"""Shared by the parts of benchmarks/gpu.py: timing on a GPU or, for a dry run, on the CPU; the device's peak speeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from common import spread

CUDA = "cuda"
Work = Callable[[int], object]
"""Something to time. It gets the address of the stream to work on, 0 on the CPU."""


def timer(device: str, work: Work) -> Callable[[], float]:
    """A function that does `work` once and returns the milliseconds it took; on a GPU, as a CUDA graph, the GPU's."""
    if device != CUDA:
        return lambda: _host_ms(work)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work(stream.cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = work(torch.cuda.current_stream().cuda_stream)

    def replay() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    replay.kept = (work, kept)  # type: ignore[attr-defined]  # the graph holds no more than their addresses
    return replay


def paired(repeats: int, *timers: Callable[[], float]) -> list[list[float]]:
    """Interleaved repeats: as many times for each timer, after two rounds that are not counted."""
    rounds = [[timed() for timed in timers] for _ in range(repeats + 2)][2:]
    return [list(times) for times in zip(*rounds, strict=True)]


def copy_timer(device: str, nbytes: int) -> tuple[Callable[[], float], float]:
    """A copy between two buffers of `nbytes`, and the bytes that it moves: each is read once and written once."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return timer(device, lambda _: target.copy_(source)), 2.0 * nbytes


def measure_device(device: str, *, tiny: bool) -> dict[str, Any]:
    """Bandwidth of a copy, GB/s (bytes read and written), and the best of some matrix products in fp16, TFLOP/s."""
    repeats = 3 if tiny else 20
    copy, moved = copy_timer(device, 1 << (20 if tiny else 30))
    (times,) = paired(repeats, copy)
    products = {str(size): _matmul_tflops(device, size, repeats) for size in ((64,) if tiny else (4096, 8192, 16384))}
    best = max(products.values(), key=lambda each: each["median"])
    return {
        "device": torch.cuda.get_device_name() if device == CUDA else "CPU",
        "copy_gbps": spread([moved / ms / 1e6 for ms in times]),
        "matmul_tflops": best,
        "matmul_tflops_by_size": products,
        "cuda": torch.version.cuda,
    }


def _matmul_tflops(device: str, size: int, repeats: int) -> dict[str, float]:
    a, b = (torch.randn(size, size, device=device).to(torch.float16) for _ in range(2))
    (times,) = paired(repeats, timer(device, lambda _: a @ b))
    return spread([2.0 * size**3 / ms / 1e9 for ms in times])


def _host_ms(work: Work) -> float:
    started = time.perf_counter()
    work(0)
    return (time.perf_counter() - started) * 1e3
