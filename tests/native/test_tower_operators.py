"""The native core's operators for picture towers, as ONNX Runtime runs them, against NumPy in float64."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from qwenvl_edge import _core
from qwenvl_edge.bundle.contract import NATIVE_PATCH_ATTENTION
from support.own_operators import OWN, session_of
from support.paths import ROOT

EPSILON = 1e-6
TYPES = {"gather": TensorProto.INT64, "keys": TensorProto.BOOL, "weight": TensorProto.INT8, "gate": TensorProto.INT8}
ATTENTION = ("qkv", "cos", "sin", "gather", "keys")
LAYER = (*("x", "weight", "scales", "bias", "norm", "norm_bias", "gate", "gate_scales", "gate_bias", "residual"),)
TILES = "amx-int8"


@pytest.fixture(params=_core.multiply_variants())
def products(request):
    """Each kind of products in turn; AMX's tiles come with tiles for attention."""
    before = _core.multiply_variant()
    _core.use_multiply(request.param)
    yield request.param
    _core.use_multiply(before)


def run(kind, order, given, threads=2, **attributes):
    names = [name if name in given else "" for name in order]
    while not names[-1]:
        names.pop()
    node = helper.make_node(kind, names, ["out"], domain=OWN, **attributes)
    ends = [helper.make_tensor_value_info(name, TYPES.get(name, TensorProto.FLOAT), None) for name in given]
    graph = helper.make_graph([node], "one", ends, [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    return session_of(graph, threads).run(None, given)[0]


def attention_inputs(pictures, patches, heads, dim, window=0, *, rotates=True, seed=0):
    """Random inputs; windows hold the patches in any order, the last one what is left."""
    random = np.random.default_rng(seed)
    given = {"qkv": random.normal(size=(pictures, patches, 3 * heads * dim)).astype(np.float32)}
    if rotates:
        angles = random.uniform(0, 6, (patches, dim // 2)).astype(np.float32)
        given |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    if window:
        count = math.ceil(patches / window)
        places = np.zeros(count * window, np.int64)
        places[:patches] = random.permutation(patches)
        given |= {"gather": places, "keys": (np.arange(count * window) < patches).reshape(count, 1, 1, window)}
    return given


def attention_in_numpy(given, heads):
    pictures, patches, width = given["qkv"].shape
    dim = width // 3 // heads
    q, k, v = np.moveaxis(given["qkv"].astype(np.float64).reshape(pictures, patches, 3, heads, dim), 2, 0)

    def turned(x):
        if "cos" not in given:
            return x
        left, right = np.split(x, 2, axis=-1)
        cos, sin = (given[name][:, None].astype(np.float64) for name in ("cos", "sin"))
        return np.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)

    q, k = turned(q), turned(k)
    out = np.zeros((pictures, patches, heads, dim))
    groups = [np.arange(patches)]
    if "gather" in given:
        filled = given["keys"][:, 0, 0]
        groups = [row[kept] for row, kept in zip(given["gather"].reshape(filled.shape), filled, strict=True)]
    for picture, head in np.ndindex(pictures, heads):
        for rows in groups:
            scores = q[picture, rows, head] @ k[picture, rows, head].T / np.sqrt(dim)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[picture, rows, head] = weights / weights.sum(-1, keepdims=True) @ v[picture, rows, head]
    return out.reshape(pictures, patches, heads * dim)


@pytest.mark.parametrize("dim", [8, 64, 72, 80, 96, 104, 128])
@pytest.mark.parametrize(
    ("pictures", "patches", "window"), [(1, 300, 0), (2, 40, 0), (1, 150, 64), (2, 100, 16), (1, 1, 0)]
)
def test_attention_is_that_of_the_definition(products, dim, pictures, patches, window):
    given = attention_inputs(pictures, patches, 3, dim, window, rotates=dim != 104)
    out = run(NATIVE_PATCH_ATTENTION, ATTENTION, given, num_heads=3)
    wanted = attention_in_numpy(given, 3)
    if products == TILES:  # bfloat16 keeps eight bits of each key, value and weight
        assert np.sqrt(np.mean((out - wanted) ** 2) / np.mean(wanted**2)) < 5e-3
        np.testing.assert_allclose(out, wanted, rtol=0, atol=4e-2)
    else:
        np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-6)


def test_sharp_and_equal_scores(products):
    """One key that outweighs all others by far, and rows that are all alike: no infinity, no loss of either."""
    given = attention_inputs(1, 70, 2, 64, rotates=False)
    given["qkv"][0, :, 128:256] *= 0.01
    given["qkv"][0, 17, 128:256] = 40
    given["qkv"][0, :, :128] = 10
    out = run(NATIVE_PATCH_ATTENTION, ATTENTION, given, num_heads=2)
    np.testing.assert_allclose(out[0], np.broadcast_to(given["qkv"][0, 17, 256:], out[0].shape), rtol=5e-3)
    given["qkv"][0] = given["qkv"][0, 0]
    out = run(NATIVE_PATCH_ATTENTION, ATTENTION, given, num_heads=2)
    np.testing.assert_allclose(out[0], given["qkv"][0, :, 256:], rtol=8e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_number_after_it(products, value):
    given = attention_inputs(1, 50, 2, 64)
    given["qkv"][0, 20, 128 + 5] = value  # a key of the first head: every query of it reads the key
    out = run(NATIVE_PATCH_ATTENTION, ATTENTION, given, num_heads=2)
    spoilt = ~np.isfinite(out[0, :, :64]).all(axis=-1)
    assert spoilt.all() if np.isnan(value) else spoilt.any()  # an infinite key weighs nothing where its score is -inf
    assert np.isfinite(out[0, :, 64:]).all()


def test_bits_do_not_depend_on_threads(products):
    given = attention_inputs(1, 200, 4, 72, 64)
    alone, together = (run(NATIVE_PATCH_ATTENTION, ATTENTION, given, threads, num_heads=4) for threads in (1, 3))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": np.zeros((1, 40, 100), np.float32)}, r"takes \[N, P, 3 \* num_heads \* D\]"),
        ({"cos": np.zeros((40, 8), np.float32)}, "do not fit together"),
        ({"cos": None}, "rotary rows of PatchAttention are incomplete"),
        ({"gather": None}, "have no patches"),
        ({"gather": np.full(48, 40)}, "names a patch that does not exist"),
        ({"gather": np.full(48, -1)}, "names a patch that does not exist"),
        ({"gather": np.zeros(5, np.int64)}, "do not fit together"),
    ],
)
def test_attention_refuses_what_does_not_fit(changes, message):
    given = {k: v for k, v in (attention_inputs(1, 40, 2, 64, 16) | changes).items() if v is not None}
    with pytest.raises(Exception, match=message):
        run(NATIVE_PATCH_ATTENTION, ATTENTION, given, num_heads=2)


def layer_inputs(rows, inputs, outputs, names, seed=0):
    random = np.random.default_rng(seed)
    sizes = {"bias": outputs, "norm": inputs, "norm_bias": inputs, "gate_bias": outputs}
    found = {
        "x": random.normal(size=(rows, inputs)).astype(np.float32),
        "residual": random.normal(size=(rows, outputs)).astype(np.float32),
        **{name: random.integers(-127, 128, (inputs, outputs)).astype(np.int8) for name in ("weight", "gate")},
        **{name: random.uniform(1e-4, 2e-3, outputs).astype(np.float32) for name in ("scales", "gate_scales")},
        **{name: random.uniform(0.5, 2, size).astype(np.float32) for name, size in sizes.items()},
    }
    return {name: found[name] for name in LAYER if name in (*names, "x", "weight", "scales")}


def layer_in_numpy(given, activation):
    """The layer in float64 with its activations rounded as the operator says."""
    x = given["x"].astype(np.float64)
    if "norm" in given:
        middle = x.mean(-1, keepdims=True) if "norm_bias" in given else 0
        x = (x - middle) / np.sqrt(((x - middle) ** 2).mean(-1, keepdims=True) + EPSILON) * given["norm"]
        x = x + given.get("norm_bias", 0)
    scale = np.abs(x).max(-1, keepdims=True) / 127
    x = np.rint(x / scale) * scale

    def product(name, scales, bias):
        return x @ (given[name].astype(np.float64) * given[scales]) + given.get(bias, 0)

    y = product("weight", "scales", "bias")
    sigmoid = [None, None, lambda y: 1.5957691216 * (y + 0.044715 * y**3), lambda y: 1.702 * y][activation]
    if activation == 1:
        y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    elif sigmoid is not None:
        y = y / (1 + np.exp(-sigmoid(y)))
    if "gate" in given:
        opened = product("gate", "gate_scales", "gate_bias")
        y = y * opened / (1 + np.exp(-opened))
    return y + given.get("residual", 0)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(70, 128, 384), (5, 100, 77), (33, 427, 64), (1, 1, 1)])
@pytest.mark.parametrize(
    ("names", "activation"),
    [
        ((), 0),
        (("bias", "norm", "norm_bias"), 0),
        (("bias", "norm", "norm_bias"), 1),
        (("bias", "norm", "norm_bias"), 2),
        (("norm",), 3),
        (("bias", "norm", "gate", "gate_scales", "gate_bias"), 0),
        (("bias", "residual"), 0),
    ],
)
def test_a_layer_is_that_of_the_definition(products, rows, inputs, outputs, names, activation):
    given = layer_inputs(rows, inputs, outputs, names)
    out = run("RowsLinear", LAYER, given, epsilon=EPSILON, activation=activation)
    wanted = layer_in_numpy(given, activation)
    # A number that lies between two integers may be rounded to either, by a last bit of its norm.
    limit = 2e-5 * np.abs(wanted).max() + np.abs(given["x"]).max() * 0.3 * 127 * 2e-3 / 127
    np.testing.assert_allclose(out, wanted, rtol=0, atol=limit)
    assert np.median(np.abs(out - wanted)) < 2e-6 * np.abs(wanted).max() + 1e-7


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_without_numbers_spoils_no_other(products, value):
    given = layer_inputs(40, 64, 96, ("bias",))
    given["x"][7, 3] = value
    out = run("RowsLinear", LAYER, given, epsilon=EPSILON, activation=0)
    assert np.isnan(out[7]).all()
    assert np.isfinite(np.delete(out, 7, axis=0)).all()


@pytest.mark.parametrize(
    ("changes", "activation", "message"),
    [
        ({"x": np.zeros((4, 65), np.float32)}, 0, r"rows \[M, K\] and a weight \[K, N\]"),
        ({"bias": np.zeros(5, np.float32)}, 0, "do not fit together"),
        ({"gate_scales": None}, 0, "has no scales"),
        ({"residual": np.zeros((5, 96), np.float32)}, 0, "do not fit together"),
        ({}, 4, "knows no such activation"),
    ],
)
def test_a_layer_refuses_what_does_not_fit(changes, activation, message):
    given = layer_inputs(4, 64, 96, LAYER) | changes
    with pytest.raises(Exception, match=message):
        kept = {name: value for name, value in given.items() if value is not None}
        run("RowsLinear", LAYER, kept, epsilon=EPSILON, activation=activation)


CPP = ROOT / "cpp_ext"
SHARED = [*sorted((CPP / "matmul").glob("block_*.cpp")), CPP / "simd" / "instruction_set.cpp"]
PROGRAMS = {
    "row_products": [CPP / "matmul" / f"row_{name}.cpp" for name in ("matmul", "vnni", "amx")],
    "patch_attention": [
        CPP / "attention" / f"{name}.cpp" for name in ("patch_attention", "patch_tiles", "attention_rows")
    ],
}
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{CPP}"]
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"


def kernels(compiler: str, name: str, folder: Path, *flags: str, emulator: tuple[str, ...] = ()) -> set[str]:
    """Compile and run a comparison of all kernels; return those that were found alike."""
    sources = [CPP / "tests" / f"{name}.cpp", *PROGRAMS[name], *SHARED]
    subprocess.run([compiler, *FLAGS, *flags, "-o", folder / name, *sources], check=True)
    done = subprocess.run([*emulator, folder / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.split(":", 1)[1].split())


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no c++")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="only the portable kernels are here")
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_kernel_gives_the_same_bits_under_sanitizers(name, tmp_path):
    found = kernels("c++", name, tmp_path, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    if name == "row_products":
        assert found == set(_core.multiply_variants())
    else:
        assert found == {*_core.kernel_variants(), *(["amx-bf16"] if TILES in _core.multiply_variants() else [])}


@pytest.mark.skipif(
    shutil.which(CROSS) is None or shutil.which(QEMU) is None,
    reason="Debian: apt-get install g++-aarch64-linux-gnu qemu-user",
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_arm_gives_the_same_bits(name, tmp_path):
    assert "portable" in kernels(CROSS, name, tmp_path, "-O2", "-static", emulator=(QEMU,))
