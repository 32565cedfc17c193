"""The plugin's kernels on a GPU: `python benchmarks/gpu_kernels.py [--library FILE] [--json FILE] [--plot FILE]`.

decode   one token over 2048 to 8192 cached ones, 32 heads of 128: bytes of keys and values read in a second, as a
         share of what a copy on the same device moves (bytes read and written). fp16 and int8 caches.
prefill  256 to 2048 tokens, fp16: time of PyTorch's flash attention on tensors that lie ready, by ours, which also
         turns queries and keys and writes the cache.

Every call is a CUDA graph of as many layers as LAYERS, each with a cache of its own, so that nothing is read from the
L2 cache and no launch is waited for. Needs PyTorch with CUDA; the kernels do not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import arguments, conditions, finish, ratio, spread

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kv_cache_attention import Arguments, Call, Case, Library, random_call  # noqa: E402

HEADS, HEAD_DIM, LAYERS = 32, 128, 16
CONTEXTS = (2048, 4096, 8192)
PROMPTS = (256, 512, 1024, 2048)
REPEATS = 15


def graph_of(work: Callable[[torch.cuda.Stream], None]) -> torch.cuda.CUDAGraph:
    """What `work` launches on the stream it is given, captured after one run to warm up."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work(stream)
    graph.work = work  # and with it the tensors, of which the graph holds the addresses only
    return graph


def milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    """The device's time for one launch of the graph."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def paired(*graphs: torch.cuda.CUDAGraph) -> list[list[float]]:
    """Interleaved repeats: REPEATS times for each graph, after two that are not counted."""
    rounds = [[milliseconds(graph) for graph in graphs] for _ in range(REPEATS + 2)][2:]
    return [list(times) for times in zip(*rounds, strict=True)]


def copy_graph(gigabytes: float = 1.0) -> tuple[torch.cuda.CUDAGraph, float]:
    """A copy between two buffers, and the bytes that it moves: each is read once and written once."""
    source = torch.empty(int(gigabytes * 2**30), dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    return graph_of(lambda stream: target.copy_(source)), 2.0 * source.numel()


def layers_graph(library: Library, calls: list[Call]) -> torch.cuda.CUDAGraph:
    """One call after another, as a model's layers make them."""
    filled: list[tuple[Arguments, list[torch.Tensor]]] = [library.arguments(call, call.past) for call in calls]

    def work(stream: torch.cuda.Stream) -> None:
        for layer, _kept in filled:
            status = library.attend(ctypes.byref(layer), stream.cuda_stream)
            if status:
                raise RuntimeError(f"CUDA error {status}")

    return graph_of(work)


def copies(case: Case) -> list[Call]:
    """The same random call for each layer, in memory of its own."""
    first = random_call(case, "cuda")
    return [
        replace(first, qkv=first.qkv.clone(), past={name: cache.clone() for name, cache in first.past.items()})
        for _ in range(LAYERS)
    ]


def decode_case(context: int, int8: bool) -> Case:
    """One token behind `context` others."""
    return Case(1, (context,), HEADS, HEADS, HEAD_DIM, context + 64, torch.float16, int8)


def decode(library: Library) -> list[dict[str, object]]:
    """Time and bandwidth of decoding, beside a copy's, for each context."""
    copy, moved = copy_graph()
    rows = []
    for context in CONTEXTS:
        half, int8 = (layers_graph(library, copies(decode_case(context, int8))) for int8 in (False, True))
        half_ms, int8_ms, copy_ms = paired(half, int8, copy)
        read = 2.0 * LAYERS * context * HEADS * HEAD_DIM
        shares = {}
        for name, times, width in (("fp16", half_ms, 2), ("int8", int8_ms, 1 + 4 / HEAD_DIM)):
            shares[name] = spread([read * width / t / (moved / c) for t, c in zip(times, copy_ms, strict=True)])
        row = {
            "context": context,
            "us_per_layer": {"fp16": spread(per_layer(half_ms)), "int8": spread(per_layer(int8_ms))},
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


def per_layer(times_ms: list[float]) -> list[float]:
    """Microseconds a layer."""
    return [1000 * time / LAYERS for time in times_ms]


def prefill(library: Library) -> list[dict[str, object]]:
    """Times of whole prompts, ours and those of PyTorch's flash attention."""
    rows = []
    for tokens in PROMPTS:
        case = Case(tokens, (0,), HEADS, HEADS, HEAD_DIM, tokens, torch.float16)
        ours = layers_graph(library, copies(case))
        theirs = flash_graph(tokens)
        our_ms, their_ms = paired(ours, theirs)
        flops = 2.0 * HEADS * tokens**2 * HEAD_DIM * LAYERS  # of the causal half
        row = {
            "tokens": tokens,
            "us_per_layer": {"ours": spread(per_layer(our_ms)), "flash": spread(per_layer(their_ms))},
            "vs_flash": ratio(our_ms, their_ms),
            "tflops": spread([flops / time / 1e9 for time in our_ms]),
        }
        rows.append(row)
        print(
            f"prefill {tokens:4}: {row['us_per_layer']['ours']['median']:7.1f} us a layer, "
            f"{row['vs_flash']['median']:.2f} times as fast as flash attention, {row['tflops']['median']:.0f} TFLOP/s"
        )
    return rows


def flash_graph(tokens: int) -> torch.cuda.CUDAGraph:
    """PyTorch's scaled_dot_product_attention, causal, its flash backend and no other."""
    layers = [torch.randn(3, 1, HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.float16) for _ in range(LAYERS)]

    def work(stream: torch.cuda.Stream) -> None:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            for q, k, v in layers:
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return graph_of(work)


def least(rows: list[dict[str, object]], *path: str) -> float:
    """The smallest median over the rows."""

    def value(row: object) -> float:
        for name in (*path, "median"):
            row = row[name]  # type: ignore[index]
        return float(row)  # type: ignore[arg-type]

    return min(value(row) for row in rows)


def measure(library: Library) -> tuple[dict[str, object], dict[str, list[dict[str, object]]]]:
    """Headline figures, the worst over all sizes, and details."""
    decoded, prefilled = decode(library), prefill(library)
    headline = {
        "device": torch.cuda.get_device_name(),
        "copy_gbps": least(decoded, "copy_gbps"),
        "kernel_decode_share": least(decoded, "share_of_copy", "fp16"),
        "kernel_prefill_vs_sdpa": least(prefilled, "vs_flash"),
        "kernel_int8_vs_fp16": least(decoded, "int8_vs_fp16"),
    }
    return headline, {"decode": decoded, "prefill": prefilled}


def draw(path: Path, details: dict[str, list[dict[str, object]]]) -> None:
    """Share of a copy's bandwidth over the context, and speed beside flash attention over the prompt's length."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    for name in ("fp16", "int8"):
        left.plot(CONTEXTS, [least([row], "share_of_copy", name) for row in details["decode"]], marker="o", label=name)
    left.set(xlabel="tokens in the cache", ylabel="share of a copy's bandwidth", ylim=(0, None))
    left.legend()
    right.plot(PROMPTS, [least([row], "vs_flash") for row in details["prefill"]], marker="o")
    right.axhline(1.0, color="gray", linewidth=0.8)
    right.set(xlabel="tokens of the prompt", ylabel="speed, flash attention = 1", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print a line a size, and the worst figures as JSON."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--library", type=Path, default=ROOT / "build" / "plugin" / "libqwenvl_tensorrt_plugin.so", metavar="FILE"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} sees no CUDA GPU; these kernels run on no other device")
    if not options.library.exists():
        sys.exit(f"there is no {options.library}; run: make plugin")
    before = conditions()
    headline, details = measure(Library(options.library))
    if options.plot:
        draw(options.plot, details)
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
