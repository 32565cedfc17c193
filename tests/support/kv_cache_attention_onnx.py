"""The op KVCacheAttention as a graph of standard ONNX ops, run by ONNX Runtime on a CPU.

The ops are those of the decoder's "standard" dialect; floats are float32, rounded where the op's definition rounds.
"""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnxruntime
import torch

from support.kv_cache_attention import Call, Case

FLOAT_TYPES = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}
SIDES = (("key", "k"), ("value", "v"))

GRAPH = """
<ir_version: 11, opset_import: ["": 24]>
attention (float[B,T,W] qkv, {cache}[B,KVH,C,D] past_key, {cache}[B,KVH,C,D] past_value, float[B,T,R] rope_cos,
           float[B,T,R] rope_sin, int64[B] write_indices, float[B,T] query_scale{scale_inputs})
    => (float[B,T,O] out, {cache}[B,KVH,C,D] key, {cache}[B,KVH,C,D] value{scale_outputs})
{{{body}}}
"""

FUNCTION = """
<opset_import: ["": 24], domain: "{domain}">
KVCacheAttention <num_heads, num_kv_heads, head_dim, int8_cache, plugin_version>
    (qkv, past_key, past_value, rope_cos, rope_sin, write_indices, query_scale{scale_inputs})
    => (out, key, value{scale_outputs})
{{{body}}}
"""

BODY = """
    sizes = Constant <value_ints = [{query}, {kv}, {kv}]> ()
    q, k, v = Split <axis = 2> (qkv, sizes)
    q_turned = RotaryEmbedding <num_heads = {heads}> (q, rope_cos, rope_sin)
    k_turned = RotaryEmbedding <num_heads = {kv_heads}> (k, rope_cos, rope_sin)
    two = Constant <value_ints = [2]> ()
    scale = Unsqueeze (query_scale, two)
    q_scaled = Mul (q_turned, scale)
    q_narrow = Cast <to = {rounded}> (q_scaled)
    q_wide = Cast <to = 1> (q_narrow)
    q_split = Constant <value_ints = [0, 0, {heads}, {dim}]> ()
    kv_split = Constant <value_ints = [0, 0, {kv_heads}, {dim}]> ()
    q_4d = Reshape (q_wide, q_split)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_4d)
    k_4d = Reshape (k_turned, kv_split)
    k_new = Transpose <perm = [0, 2, 1, 3]> (k_4d)
    v_4d = Reshape (v, kv_split)
    v_new = Transpose <perm = [0, 2, 1, 3]> (v_4d)
    {write}
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    tokens_1 = Shape <start = 1, end = 2> (qkv)
    tokens = Squeeze (tokens_1)
    capacity_1 = Shape <start = 2, end = 3> (past_key)
    capacity = Squeeze (capacity_1)
    t_range = Range (zero, tokens, one)
    positions = Range (zero, capacity, one)
    axes_t = Constant <value_ints = [1]> ()
    t_column = Unsqueeze (t_range, axes_t)
    axes_w = Constant <value_ints = [1, 2, 3]> ()
    write_4d = Unsqueeze (write_indices, axes_w)
    limit = Add (write_4d, t_column)
    mask = LessOrEqual (positions, limit)
    attended = Attention (q_heads, key_float, value_float, mask)
    joined = Transpose <perm = [0, 2, 1, 3]> (attended)
    out_shape = Constant <value_ints = [0, 0, {query}]> ()
    out = Reshape (joined, out_shape)
"""

WRITE_FLOAT = """
    {side}_narrow = Cast <to = {rounded}> ({initial}_new)
    {side}_rounded = Cast <to = 1> ({side}_narrow)
    {side} = TensorScatter <axis = 2> (past_{side}, {side}_rounded, write_indices)
    {side}_float = Identity ({side})
"""

WRITE_INT8 = """
    {side}_magnitude = Abs ({initial}_new)
    {side}_last = Constant <value_ints = [-1]> ()
    {side}_largest = ReduceMax <keepdims = 1> ({side}_magnitude, {side}_last)
    {side}_levels = Constant <value_float = 127.0> ()
    {side}_step = Div ({side}_largest, {side}_levels)
    {side}_ones = Constant <value_float = 1.0> ()
    {side}_none = Constant <value_float = 0.0> ()
    {side}_positive = Greater ({side}_step, {side}_none)
    {side}_divisor = Where ({side}_positive, {side}_step, {side}_ones)
    {side}_units = Div ({initial}_new, {side}_divisor)
    {side}_whole = Round ({side}_units)
    {side}_int8 = Cast <to = 3> ({side}_whole)
    {side} = TensorScatter <axis = 2> (past_{side}, {side}_int8, write_indices)
    {side}_old_steps = Unsqueeze (past_{side}_scale, {side}_last)
    {side}_all_steps = TensorScatter <axis = 2> ({side}_old_steps, {side}_step, write_indices)
    {side}_scale = Squeeze ({side}_all_steps, {side}_last)
    {side}_integers = Cast <to = 1> ({side})
    {side}_float = Mul ({side}_integers, {side}_all_steps)
"""


def body(heads: int, kv_heads: int, head_dim: int, rounded: int, *, int8: bool) -> str:
    """What the op computes; `rounded` is ONNX's number of the type that its floats have."""
    write = "".join(
        (WRITE_INT8 if int8 else WRITE_FLOAT).format(side=side, initial=initial, rounded=rounded)
        for side, initial in SIDES
    )
    sizes = {"query": heads * head_dim, "kv": kv_heads * head_dim, "dim": head_dim}
    return BODY.format(heads=heads, kv_heads=kv_heads, rounded=rounded, write=write, **sizes)


def scales(form: str, *, int8: bool) -> str:
    """The scales of an int8 cache as further inputs or outputs, `form` with the side's name in each."""
    return "".join(", " + form.format(f"{side}_scale") for side, _ in SIDES) if int8 else ""


def function(domain: str, heads: int, head_dim: int, *, int8: bool, kv_heads: int | None = None) -> onnx.FunctionProto:
    """The op of a decoder in float32 as a local function; None: each head has keys of its own."""
    text = FUNCTION.format(
        domain=domain,
        scale_inputs=scales("past_{}", int8=int8),
        scale_outputs=scales("{}", int8=int8),
        body=body(heads, kv_heads or heads, head_dim, onnx.TensorProto.FLOAT, int8=int8),
    )
    return onnx.parser.parse_function(text)


def graph(case: Case) -> str:
    """The definition for a case, in ONNX's text form."""
    return GRAPH.format(
        cache="int8" if case.int8 else "float",
        scale_inputs=scales("float[B,KVH,C] past_{}", int8=case.int8),
        scale_outputs=scales("float[B,KVH,C] {}", int8=case.int8),
        body=body(case.heads, case.kv_heads, case.head_dim, FLOAT_TYPES[case.dtype], int8=case.int8),
    )


def attend(call: Call) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """out [B, T, NH D] in float32 and the caches after the call, positions that held nothing being zero."""
    model = onnx.parser.parse_model(graph(call.case))
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # caches are not bound in place here, and ONNX Runtime says so
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = ("qkv", "rope_cos", "rope_sin", "write_indices", "query_scale")
    feed = {name: feedable(getattr(call, name)) for name in inputs}
    feed |= {f"past_{name}": feedable(cache) for name, cache in call.past.items()}
    names = [output.name for output in session.get_outputs()]
    results = dict(zip(names, map(torch.from_numpy, session.run(names, feed)), strict=True))
    return results.pop("out"), results


def feedable(x: torch.Tensor) -> np.ndarray:
    """Floats as float32, NaN as 0: a masked NaN times 0 would be NaN."""
    return (x.float().nan_to_num(0.0) if x.is_floating_point() else x).numpy()
