"""The native core's Linear, as ONNX Runtime runs it, beside the operators that it stands for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwenvl_edge import _core
from support.own_operators import OWN, session_of

EPSILON = 1e-6
PARTS = [set(chosen) for n in range(5) for chosen in itertools.combinations(("bias", "norm", "gate", "residual"), n)]


def tensors(inputs, outputs, bits, block):
    """Initializers of a layer: packed weights of two matrices, their scales, a bias and a norm."""
    random = np.random.default_rng(inputs + outputs + bits + block)
    packed = (outputs, inputs // block, block * bits // 8)
    found = {name: random.integers(0, 256, packed, np.uint8) for name in ("packed", "gate")}
    for name in ("scales", "gate_scales"):
        found[name] = random.uniform(0.002, 0.02, packed[:2]).astype(np.float32)
    found["bias"] = random.normal(size=outputs).astype(np.float32)
    found["norm"] = random.uniform(0.5, 2, inputs).astype(np.float32)
    return found


def session(nodes, initializers, *, threads=1):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "residual", "y")]
    tables = [numpy_helper.from_array(table, name) for name, table in initializers.items()]
    graph = helper.make_graph(nodes, "layer", ends[:2], ends[2:], tables)
    return session_of(graph, threads)


def fused(parts, **attributes):
    names = ["x", "packed", "scales", *(name if name in parts else "" for name in ("bias", "norm"))]
    names += ["gate", "gate_scales"] if "gate" in parts else ["", ""]
    names += ["residual"] if "residual" in parts else [""]
    while not names[-1]:
        names.pop()
    return [helper.make_node("Linear", names, ["y"], domain=OWN, epsilon=EPSILON, **attributes)]


def apart(parts, **attributes):
    """The same by one operator per step."""

    def product(x, weight, scales, y, *bias):
        return helper.make_node("MatMulNBits", [x, weight, scales, *bias], [y], domain=OWN, **attributes)

    nodes, x = [], "x"
    if "norm" in parts:
        nodes.append(helper.make_node("RMSNormalization", ["x", "norm"], ["normed"], axis=-1, epsilon=EPSILON))
        x = "normed"
    nodes.append(product(x, "packed", "scales", "product", *(["bias"] if "bias" in parts else [])))
    y = "product"
    if "gate" in parts:
        nodes += [product(x, "gate", "gate_scales", "opened"), helper.make_node("Sigmoid", ["opened"], ["sigmoid"])]
        nodes.append(helper.make_node("Mul", ["opened", "sigmoid"], ["silu"]))
        nodes.append(helper.make_node("Mul", [y, "silu"], ["gated"]))
        y = "gated"
    if "residual" in parts:
        nodes.append(helper.make_node("Add", ["residual", y], ["sum"]))
        y = "sum"
    return [*nodes, helper.make_node("Identity", [y], ["y"])]


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(sorted(parts)) or "product")
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 64)])
def test_it_computes_what_its_parts_compute(parts, bits, block):
    inputs, outputs = 384, 1033
    shape = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    given = tensors(inputs, outputs, bits, block)
    runs = [session(nodes(parts, **shape), given, threads=2).run for nodes in (fused, apart)]
    random = np.random.default_rng(0)
    for rows in (1, 3, 4, 5, 17):
        x, residual = (random.normal(size=(rows, size)).astype(np.float32) for size in (inputs, outputs))
        found, wanted = (run(None, {"x": x, "residual": residual})[0] for run in runs)
        if "norm" in parts:  # an activation at the border of two integers may fall to either side
            assert np.mean(np.abs(found - wanted)) <= 1e-4 * np.abs(wanted).max()
            np.testing.assert_allclose(found, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())
        else:
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6 * np.abs(wanted).max())


def test_every_instruction_set_gives_the_same_bits():
    inputs, outputs = 416, 77
    given = tensors(inputs, outputs, 4, 32)
    run = session(fused(PARTS[-1], K=inputs, N=outputs, bits=4, block_size=32), given).run
    random = np.random.default_rng(1)
    chosen, best = _core.kernel_variants()[0], None
    for rows in (1, 7):
        x, residual = (random.normal(size=(rows, size)).astype(np.float32) for size in (inputs, outputs))
        x[0] *= 1e3  # gates far from zero on both sides
        best = None
        for name in _core.kernel_variants():
            _core.use_kernels(name)
            found = run(None, {"x": x, "residual": residual})[0]
            best = found if best is None else best
            np.testing.assert_array_equal(found, best, err_msg=name)
        _core.use_kernels(chosen)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_stays_none(broken):
    given = tensors(384, 40, 8, 64)
    run = session(fused(PARTS[-1], K=384, N=40, bits=8, block_size=64), given).run
    x, residual = np.ones((3, 384), np.float32), np.zeros((3, 40), np.float32)
    x[1, 100] = broken
    y = run(None, {"x": x, "residual": residual})[0]
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bias", "the inputs of Linear do not fit together: number 3 "),
        ("norm", "the inputs of Linear do not fit together: number 4 "),
        *((name, "the weights have another shape") for name in ("gate", "gate_scales")),
    ],
)
def test_tensors_that_do_not_fit(name, message):
    given = tensors(384, 40, 8, 64)
    given[name] = given[name][1:]
    bad = session(fused(PARTS[-1], K=384, N=40, bits=8, block_size=64), given)
    with pytest.raises(Exception, match=message):
        bad.run(None, {"x": np.zeros((1, 384), np.float32), "residual": np.zeros((1, 40), np.float32)})


def test_a_residual_of_another_shape():
    given = tensors(384, 40, 8, 64)
    good = session(fused(PARTS[-1], K=384, N=40, bits=8, block_size=64), given)
    with pytest.raises(Exception, match="the inputs of Linear do not fit together: number 7 "):
        good.run(None, {"x": np.zeros((2, 384), np.float32), "residual": np.zeros((1, 40), np.float32)})
