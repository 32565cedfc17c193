"""ONNX Runtime's CPU attention over a float32 and an int8 KV cache, and the native core's over a float16 cache.

    python benchmarks/kv_cache.py [--threads 1] [--repeats 15] [--json FILE]

One layer of the published model (32 heads of 128, room for 2,048 tokens). GroupQueryAttention's int8 cache has one
scale a channel, fixed before the first token, so the comparison is of speed alone; it says whether the "onnxruntime"
dialect could have such a cache without losing any. The native operator also turns queries and keys. Ratios are
float32's time over the other's, above 1 where the other is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from common import arguments, conditions, finish, ratio, spread

from qwenvl_edge import _core

HEADS, DIM, CAPACITY = 32, 128, 2048
CALLS = {
    "decode_at_512": (1, 512),
    "decode_at_2000": (1, 2000),
    "verify_8_at_512": (8, 512),
    "prefill_128_at_0": (128, 0),
    "prefill_128_at_1024": (128, 1024),
}
SCALE = np.full((1, HEADS, 1, DIM), 4 / 127, np.float32)  # of normal values; hardly any is clipped
GRAPH = """
<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
attention (float[1,T,W] q, float[1,T,W] k, float[1,T,W] v, {cache}[1,N,C,D] past_k, {cache}[1,N,C,D] past_v,
           int32[1] last, int32 total{scales})
    => (float[1,T,W] out, {cache}[1,N,C,D] present_k, {cache}[1,N,C,D] present_v)
{{
    out, present_k, present_v = com.microsoft.GroupQueryAttention <num_heads = {heads}, kv_num_heads = {heads}{options}>
        (q, k, v, past_k, past_v, last, total{inputs})
}}
"""
INT8 = {
    "cache": "int8",
    "scales": f", float[1,{HEADS},1,{DIM}] k_scale, float[1,{HEADS},1,{DIM}] v_scale",
    "options": ', k_quant_type = "PER_CHANNEL", v_quant_type = "PER_CHANNEL", kv_cache_bit_width = 8',
    "inputs": ', "", "", "", "", "", k_scale, v_scale',
}
FLOAT = {"cache": "float", "scales": "", "options": "", "inputs": ""}


NATIVE = """
<ir_version: 10, opset_import: ["": 20, "qwenvl_edge": 1]>
attention (float[T,W3] qkv, float[1,T,H] cos, float[1,T,H] sin, int32[1] last, float16[1,N,C,D] past_k,
           float16[1,N,C,D] past_v)
    => (float[T,W] out, float16[1,N,C,D] present_k, float16[1,N,C,D] present_v)
{{
    out, present_k, present_v = qwenvl_edge.CachedAttention <num_heads = {heads}, kv_num_heads = {heads}, epsilon = 0.0>
        (qkv, cos, sin, last, past_k, past_v)
}}
"""
FORMS = {"float32": GRAPH.format(heads=HEADS, **FLOAT), "int8": GRAPH.format(heads=HEADS, **INT8)}
FORMS["native"] = NATIVE.format(heads=HEADS)


def new_tokens(form: str, tokens: int, used: int, random: np.random.Generator) -> dict[str, Any]:
    """A call's inputs beside the cache."""
    if form == "native":
        turned = {name: random.standard_normal((1, tokens, DIM // 2), np.float32) for name in ("cos", "sin")}
        new = turned | {"qkv": random.standard_normal((tokens, 3 * HEADS * DIM), np.float32)}
    else:
        new = {name: random.standard_normal((1, tokens, HEADS * DIM), np.float32) for name in "qkv"}
        new["total"] = np.array(used + tokens, np.int32)
    return new | {"last": np.array([used + tokens - 1], np.int32)}


def attention(threads: int, form: str) -> Callable[[int, int], float]:
    """A function that attends `tokens` after `used` ones, the cache bound in place; it returns its seconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if form == "native":
        options.register_custom_ops_library(_core.__file__)
    model = onnx.parser.parse_model(FORMS[form])
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, random = session.io_binding(), np.random.default_rng(0)
    for side in "kv":
        cache = random.standard_normal((1, HEADS, CAPACITY, DIM), np.float32)
        if form == "int8":
            cache = np.rint(cache / SCALE).clip(-127, 127).astype(np.int8)
            binding.bind_cpu_input(f"{side}_scale", SCALE)
        elif form == "native":
            cache = cache.astype(np.float16)
        value = ort.OrtValue.ortvalue_from_numpy(cache)
        binding.bind_ortvalue_input(f"past_{side}", value)
        binding.bind_ortvalue_output(f"present_{side}", value)

    def call(tokens: int, used: int) -> float:
        for name, array in new_tokens(form, tokens, used, random).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("out")
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        return time.perf_counter() - start

    return call


def main() -> None:
    """Measure every call with both caches in turns."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    before = conditions()
    sides = {name: attention(options.threads, name) for name in FORMS}
    details: dict[str, Any] = {}
    figures: dict[str, float] = {}
    for name, shape in CALLS.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for i in range(options.repeats + 2):
            for side, call in sides.items():
                took = call(*shape)
                if i >= 2:
                    seconds[side].append(took)
        found = {side: ratio(seconds[side], seconds["float32"]) for side in ("int8", "native")}
        figures |= {name: found["int8"]["median"], f"native_{name}": found["native"]["median"]}
        milliseconds = {side: spread([1e3 * s for s in took]) for side, took in seconds.items()}
        details[name] = {"tokens": shape[0], "behind": shape[1], "ms": milliseconds}
        details[name] |= {f"float32_vs_{side}": each for side, each in found.items()}
        faster = ", ".join(f"{side} {each['median']:.2f} times as fast" for side, each in found.items())
        print(f"{name:<20} float32 {milliseconds['float32']['median']:8.3f} ms, {faster}")
    finish(options, before, figures, {"threads": options.threads, "calls": details})


if __name__ == "__main__":
    main()
