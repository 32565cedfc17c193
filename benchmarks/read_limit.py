"""What bounds a token: the bytes that it reads, and how fast this machine reads memory.

The limit is the best of nine ways of reading as many bytes on as many threads, without computing anything (the native
core's MemoryReader). A buffer of the weights' own size lies in a large last cache as far as they would.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import onnx

from qwenvl_edge._core import MemoryReader
from qwenvl_edge.backends.onnxruntime.session import cache_item_bytes, fastest_dialect
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import NATIVE

REPEATS = 2
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
