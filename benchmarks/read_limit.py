"""The bound of a token: the bytes that it reads, and how fast this machine reads memory.

    python benchmarks/read_limit.py [--megabytes 500] [--threads N] [--repeats 7] [--json FILE]

prints the gigabytes per second of each way of reading, medians of turns.

The limit is the best of sixteen ways of reading as many bytes on as many threads, without computing anything (the
native core's MemoryReader). A buffer of the weights' own size lies in a large last cache as far as they would.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from common import arguments, conditions, finish, spread

from qwenvl_edge._core import MemoryReader
from qwenvl_edge.backends.onnxruntime.session import cache_item_bytes, fastest_dialect
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import NATIVE

REPEATS = 2
STREAMS, AHEAD = (1, 4, 8, 16), (0, 512, 4096, 16384)
_LONG_BLOCK = 128
_MOST_BYTES = 1 << 30  # beyond it no cache helps, and memory is short


def decode_bytes(bundle: Bundle, prompt: int) -> int:
    """Bytes that a token after a prompt reads: the weights of the decoder that runs here, and its cache."""
    return weight_bytes(bundle) + cache_bytes(bundle, prompt)


def cache_bytes(bundle: Bundle, tokens: int) -> int:
    """Bytes of the KV cache of so many tokens."""
    model = bundle.manifest.model
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * tokens * cache_item_bytes(bundle)


def weight_bytes(bundle: Bundle) -> int:
    """Bytes of the weights that the fastest decoder of a bundle reads for a token."""
    dialect = fastest_dialect(bundle)
    graph = onnx.load(bundle.file(bundle.manifest.graphs.decoder[dialect]), load_external_data=False).graph
    return sum(read_bytes(graph, bundle, dialect).values())


def read_bytes(graph: onnx.GraphProto, bundle: Bundle, dialect: str) -> dict[str, int]:
    """Bytes that a token reads of each stored tensor of a decoder.

    The native core reads scales of short blocks in float16 where all of a matrix are such numbers.
    """
    places = {
        tensor.name: {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        for tensor in graph.initializer
        if tensor.external_data
    }
    found = {name: place["length"] for name, place in places.items()}
    data = np.memmap(bundle.file("decoder.data"), np.uint8, "r")
    for node in graph.node if dialect == NATIVE else ():
        blocks = [each.i for each in node.attribute if each.name == "block_size"]
        for name in node.input if blocks and blocks[0] < _LONG_BLOCK else ():
            if name.endswith(".scales") and name in places:
                start, length = places[name].get("offset", 0), places[name]["length"]
                scales = data[start : start + length].view(np.float32)
                found[name] = length // 2 if np.array_equal(scales, scales.astype(np.float16)) else length
    return found


def reader_for(sizes: Iterable[int], threads: int | None) -> MemoryReader:
    """A reader for what moves so many bytes; of several sizes the smallest, since no larger one is read faster."""
    return MemoryReader(min(*sizes, _MOST_BYTES), threads or len(os.sched_getaffinity(0)))


def read_gb_s(reader: MemoryReader) -> float:
    """The most gigabytes per second that were read just now."""
    return reader.best_gb_s(REPEATS)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every way of reading in turns, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="of memory that is read")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)
    before = conditions()
    reader = MemoryReader(options.megabytes * 1_000_000, options.threads or len(os.sched_getaffinity(0)))
    ways = [(streams, ahead) for streams in STREAMS for ahead in AHEAD]
    turns = [[reader.gb_s(*way) for way in ways] for _ in range(options.repeats + 1)][1:]
    found = {way: spread([turn[i] for turn in turns]) for i, way in enumerate(ways)}
    print("GB/s by streams of a thread, and bytes by which each is fetched ahead")
    print("streams" + "".join(f"{ahead:>9,}" for ahead in AHEAD))
    for streams in STREAMS:
        print(f"{streams:>7}" + "".join(f"{found[streams, ahead]['median']:>9.1f}" for ahead in AHEAD))
    medians = {streams: max(found[streams, ahead]["median"] for ahead in AHEAD) for streams in STREAMS}
    headline = {f"streams_{streams}_gb_s": best for streams, best in medians.items()}
    details = {f"{streams} streams, {ahead} ahead": figures for (streams, ahead), figures in found.items()}
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
