"""The forms that a linear layer can take in ONNX Runtime, on one matrix and one number of rows.

    python benchmarks/matmul.py [--rows 1024 --inputs 1024 --outputs 4096] [--repeats 20] [--json FILE]

signed, unsigned: 8-bit weights beside activations that are quantized when it runs; made-unsigned: signed weights that
ONNX Runtime makes unsigned at load, as the runtime asks for on x86 without VNNI. int8, int4: blocks that share a scale,
by ONNX Runtime's MatMulNBits, and "native" by the native core's; QWENVL_TEST_MULTIPLY=avx2 in the environment takes
other kernels than the best of this processor.
The forms take turns, with a pause in which the threads of the one before come to rest; GFLOP/s are medians with
quartiles, errors the root mean square against fp32, as a share of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from common import arguments, conditions, finish, spread
from onnx import TensorProto, helper, numpy_helper

from qwenvl_edge import _core

FloatArray = npt.NDArray[np.float32]
MICROSOFT, OWN = "com.microsoft", "qwenvl_edge"
SETTLE_S = 0.1


def session(
    nodes: Sequence[onnx.NodeProto], tables: dict[str, npt.NDArray[Any]], **config: str
) -> ort.InferenceSession:
    """A graph from x [M, in] to y [M, out]; `config` are session entries without their prefix."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", None]) for name in "xy"]
    initializers = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(OWN, 1)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(_core.__file__)
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def floats(weight: FloatArray) -> ort.InferenceSession:
    """The weight [out, in] as it is."""
    return session([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": weight})


def rows(weight: FloatArray, zero: int, dtype: type, **config: str) -> ort.InferenceSession:
    """A scale an output row, and one for the activations when it runs."""
    scales = np.abs(weight).max(axis=1) / 127
    integers = (np.round(weight / scales[:, None]) + zero).astype(dtype).T
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz", "z"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["scale"]),
        helper.make_node("Mul", ["wide", "scale"], ["y"]),
    ]
    return session(nodes, {"w": np.ascontiguousarray(integers), "z": np.array(zero, dtype), "s": scales}, **config)


def blocks(weight: FloatArray, bits: int, size: int, domain: str = MICROSOFT) -> ort.InferenceSession:
    """A scale for every `size` inputs, as MatMulNBits stores them, that of ONNX Runtime or of the native core."""
    outputs, inputs = weight.shape
    parts, zero = weight.reshape(outputs, -1, size), 1 << (bits - 1)
    scales = np.abs(parts).max(axis=-1) / (zero - 1)
    integers = (np.round(parts / scales[..., None]) + zero).astype(np.uint8)
    packed = integers if bits == 8 else integers[..., 0::2] | integers[..., 1::2] << 4
    shape = {"K": inputs, "N": outputs, "bits": bits, "block_size": size}
    shape |= {"accuracy_level": 4} if domain == MICROSOFT else {}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=domain, **shape)
    return session([node], {"w": packed, "s": scales})


def measure(
    forms: dict[str, ort.InferenceSession], x: FloatArray, exact: FloatArray, repeats: int
) -> dict[str, dict[str, float]]:
    """GFLOP/s of each form and its error. The first turn is warm-up."""
    operations = 2e-9 * x.size * exact.shape[1]
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    errors = {}
    for number in range(repeats + 1):
        for name, form in forms.items():
            time.sleep(SETTLE_S)
            started = time.perf_counter()
            y = form.run(None, {"x": x})[0]
            if number:
                speeds[name].append(operations / (time.perf_counter() - started))
            errors[name] = float(np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)))
    return {name: spread(speeds[name]) | {"error": errors[name]} for name in forms}


def main() -> None:
    """Measure, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    before, random = conditions(), np.random.default_rng(0)
    weight = (random.normal(size=(options.outputs, options.inputs)) / np.sqrt(options.inputs)).astype(np.float32)
    x = random.normal(size=(options.rows, options.inputs)).astype(np.float32)
    forms = {
        "fp32": floats(weight),
        "signed": rows(weight, 0, np.int8),
        "unsigned": rows(weight, 128, np.uint8),
        "made-unsigned": rows(weight, 0, np.int8, x64quantprecision="1"),
        "int8, 32": blocks(weight, 8, 32),
        "int8, 128": blocks(weight, 8, 128),
        "int4, 32": blocks(weight, 4, 32),
        "int4, 128": blocks(weight, 4, 128),
        **{
            f"int{bits}, {size}, native": blocks(weight, bits, size, OWN)
            for bits, size in itertools.product((8, 4), (32, 128))
        },
    }
    details = measure(forms, x, x @ weight.T, options.repeats)
    for name, found in details.items():
        low, middle, high = (found[key] for key in ("q25", "median", "q75"))
        print(f"{name:<20}{middle:>8.0f} GFLOP/s ({low:.0f} .. {high:.0f}), error {found['error']:.4f}")
    shape = [options.rows, options.inputs, options.outputs]
    headline = {"signed_vs_unsigned": details["signed"]["median"] / details["unsigned"]["median"], "shape": shape}
    headline |= {
        f"native_{bits}_{size}": details[f"{bits}, {size}, native"]["median"] / details[f"{bits}, {size}"]["median"]
        for bits, size in itertools.product(("int8", "int4"), (32, 128))
    } | {"kernels": _core.multiply_variant()}
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
