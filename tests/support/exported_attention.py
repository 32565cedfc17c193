"""The exporter's attention of the standard dialect over an int8 cache as a graph of its own, run by ONNX Runtime."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch

from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge_export.graphs.attention import OPSETS, CachedAttention, StepInputs, cache_tensors
from qwenvl_edge_export.graphs.builder import FLOAT, GraphBuilder
from qwenvl_edge_export.graphs.weight_layout import WeightLayout
from support.kv_cache_attention import Call


def attend(call: Call) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """out [B, T, NH D] in float16 and the caches after the call; without log-n, and with as many key heads as heads."""
    case = call.case
    decoder: Any = SimpleNamespace(
        heads=case.heads, kv_heads=case.kv_heads, head_dim=case.head_dim, scales_queries=False
    )
    layer: Any = SimpleNamespace(q_norm=None, k_norm=None)
    width = case.heads * case.head_dim
    g = GraphBuilder("attention", WeightLayout("none.data", ir.DataType.FLOAT16, ()), OPSETS[STANDARD])
    qkv = g.input("qkv", g.dtype, ["B", "T", 3 * width])
    past = cache_tensors(decoder, g.dtype, int8=True)
    cached = [g.input(name, *described) for name, described in past.items()]
    step = StepInputs(
        *(g.input(name, FLOAT, ["B", "T", case.head_dim // 2]) for name in ("rope_cos", "rope_sin")),
        tokens=g.op("Shape", qkv, start=1, end=2),
        capacity=g.op("Shape", cached[0], start=2, end=3),
    )
    attention = CachedAttention(g, decoder, STANDARD, step, int8_cache=True)
    out, present = attention(*g.ops("Split", 3, qkv, axis=2, num_outputs=3), cached, layer)
    g.output(out, "out", g.dtype, ["B", "T", width])
    for value, (name, described) in zip(present, past.items(), strict=True):
        g.output(value, f"present_{name}", *described)

    model = ir.to_proto(g.build()).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {name: getattr(call, name) for name in ("qkv", "write_indices", "rope_cos", "rope_sin")}
    feed |= {name: cache.nan_to_num(0.0) if cache.is_floating_point() else cache for name, cache in call.past.items()}
    found = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    result, *caches = map(torch.from_numpy, found)
    return result, dict(zip(past, caches, strict=True))
