"""The native core's attention over a float16 cache, as ONNX Runtime runs it, against NumPy in float64."""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from qwenvl_edge import _core
from qwenvl_edge.bundle.contract import NATIVE_ATTENTION
from support.own_operators import OWN, session_of
from support.paths import ROOT

EPSILON = 1e-6
NAMES = ("qkv", "cos", "sin", "last", "past_key", "past_value", "scale", "q_norm", "k_norm")
TYPES = {"last": TensorProto.INT32, "past_key": TensorProto.FLOAT16, "past_value": TensorProto.FLOAT16}
OUTPUTS = ("out", "key", "value")


def session(heads, kv_heads, given=NAMES, threads=1):
    names = [name if name in given else "" for name in NAMES]
    while not names[-1]:
        names.pop()
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "epsilon": EPSILON}
    node = helper.make_node(NATIVE_ATTENTION, names, OUTPUTS, domain=OWN, **attributes)
    ends = [helper.make_tensor_value_info(name, TYPES.get(name, TensorProto.FLOAT), None) for name in given]
    half = {"key": TensorProto.FLOAT16, "value": TensorProto.FLOAT16}
    made = [helper.make_tensor_value_info(name, half.get(name, TensorProto.FLOAT), None) for name in OUTPUTS]
    graph = helper.make_graph([node], "attention", ends, made)
    return session_of(graph, threads)


def arrays(batch, tokens, heads, kv_heads, dim, before, capacity, given=NAMES, seed=0):
    """Inputs of a call behind `before` tokens of each row; the cache's other rows hold NaN."""
    random = np.random.default_rng(seed)
    before = np.broadcast_to(before, batch)
    angles = random.uniform(0, 6, (batch, tokens, dim // 2)).astype(np.float32)
    found = {
        "qkv": random.normal(size=(batch * tokens, (heads + 2 * kv_heads) * dim)).astype(np.float32),
        **{"cos": np.cos(angles), "sin": np.sin(angles), "last": (before + tokens - 1).astype(np.int32)},
        **{name: random.normal(size=(batch, kv_heads, capacity, dim)).astype(np.float16) for name in NAMES[4:6]},
        "scale": random.uniform(1, 2, (batch, tokens)).astype(np.float32),
        **{name: random.uniform(0.5, 2, dim).astype(np.float32) for name in NAMES[7:]},
    }
    for row, count in enumerate(before):
        for name in NAMES[4:6]:
            found[name][row, :, count:] = np.nan
    return {name: found[name] for name in NAMES if name in given}


def in_numpy(given, heads, kv_heads):
    """Output and cache in float64, with keys and values rounded to halves as they are written."""
    batch, kv, _, dim = given["past_key"].shape
    tokens = given["cos"].shape[1]
    keys, values = given["past_key"].copy(), given["past_value"].copy()
    qkv = given["qkv"].astype(np.float64).reshape(batch, tokens, heads + 2 * kv, dim)
    q, k, v = np.split(qkv, [heads, heads + kv], axis=2)

    def turned(x, norm):
        if norm in given:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * given[norm]
        left, right = np.split(x, 2, axis=-1)
        cos, sin = (given[name][:, :, None].astype(np.float64) for name in ("cos", "sin"))
        return np.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)

    q, k = turned(q, "q_norm"), turned(k, "k_norm")
    if "scale" in given:
        q = q * given["scale"][:, :, None, None]
    out = np.empty((batch, tokens, heads, dim))
    for row, last in enumerate(given["last"]):
        first = last + 1 - tokens
        keys[row, :, first : last + 1] = k[row].swapaxes(0, 1).astype(np.float16)
        values[row, :, first : last + 1] = v[row].swapaxes(0, 1).astype(np.float16)
        for t, head in np.ndindex(tokens, heads):
            seen = slice(0, first + t + 1)
            ours = head // (heads // kv_heads)
            scores = keys[row, ours, seen].astype(np.float64) @ q[row, t, head] / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out[row, t, head] = weights / weights.sum() @ values[row, ours, seen].astype(np.float64)
    return out.reshape(batch * tokens, heads * dim), keys, values


def check(given, heads, kv_heads, threads=2):
    out, keys, values = session(heads, kv_heads, tuple(given), threads).run(None, given)
    wanted, wanted_keys, wanted_values = in_numpy(given, heads, kv_heads)
    # A key that lies between two halves may be rounded to either, by a last bit of its rotation.
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-4)
    assert np.abs(out - wanted).mean() < 2e-6
    np.testing.assert_array_equal(values, wanted_values)
    np.testing.assert_allclose(keys.astype(np.float32), wanted_keys.astype(np.float32), rtol=1e-3, atol=1e-6)
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dim", [16, 64, 80, 128])
@pytest.mark.parametrize(("tokens", "before"), [(1, 0), (1, 300), (3, 126), (40, 0), (70, 100)])
def test_it_computes_what_numpy_does(heads, kv_heads, dim, tokens, before):
    given = arrays(1, tokens, heads, kv_heads, dim, before, before + tokens + 3, NAMES[:6])
    check(given, heads, kv_heads)


@pytest.mark.parametrize("parts", [("scale",), ("q_norm", "k_norm"), ("scale", "q_norm", "k_norm")])
def test_scales_and_norms(parts):
    check(arrays(2, 5, 6, 2, 32, 20, 40, (*NAMES[:6], *parts)), 6, 2)


@pytest.mark.parametrize("tokens", [1, 4])
def test_rows_of_a_batch_have_lengths_of_their_own(tokens):
    before = np.array([0, 7, 150])
    given = arrays(3, tokens, 4, 2, 64, before, 160, NAMES[:6])
    together = check(given, 4, 2).reshape(3, tokens, -1)
    run = session(4, 2, NAMES[:6]).run
    for row in range(3):
        qkv = given["qkv"].reshape(3, tokens, -1)[row]
        alone = {name: array[row : row + 1] for name, array in given.items() if name != "qkv"} | {"qkv": qkv}
        np.testing.assert_array_equal(run(None, alone)[0], together[row])


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 1), (8, 8)])
def test_the_same_bits_however_a_prompt_is_divided(heads, kv_heads):
    count = 300
    given = arrays(1, count, heads, kv_heads, 64, 0, count, NAMES[:6])
    whole = session(heads, kv_heads, NAMES[:6], 2).run(None, given)
    run = session(heads, kv_heads, NAMES[:6], 1).run
    cache, outs, bounds = [given["past_key"], given["past_value"]], [], [0, 1, 3, 40, 41, 170, 299, 300]
    for first, last in itertools.pairwise(bounds):
        part = {"qkv": given["qkv"][first:last], "last": np.array([last - 1], np.int32)}
        part |= {name: given[name][:, first:last] for name in ("cos", "sin")}
        out, *cache = run(None, part | dict(zip(NAMES[4:6], cache, strict=True)))
        outs.append(out)
    for found, wanted in zip([np.concatenate(outs), *cache], whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_cache_is_written_where_it_lies():
    given = arrays(1, 2, 4, 4, 32, 5, 10, NAMES[:6])
    bound = session(4, 4, NAMES[:6])
    wanted = bound.run(None, given)
    binding = bound.io_binding()
    for name in ("qkv", "cos", "sin", "last"):
        binding.bind_cpu_input(name, given[name])
    for past, present in (("past_key", "key"), ("past_value", "value")):
        value = ort.OrtValue.ortvalue_from_numpy(given[past])
        binding.bind_ortvalue_input(past, value)
        binding.bind_ortvalue_output(present, value)
    binding.bind_output("out")
    bound.run_with_iobinding(binding)
    for past, expected in zip(("past_key", "past_value"), wanted[1:], strict=True):
        np.testing.assert_array_equal(given[past], expected)
    np.testing.assert_array_equal(binding.get_outputs()[-1].numpy(), wanted[0])


def test_what_is_no_number_stays_none_and_only_where_it_is_seen():
    given = arrays(1, 4, 2, 2, 32, 10, 14, NAMES[:6])
    given["qkv"][2, 2 * 32] = np.nan  # a key of the third token's first head
    out = session(2, 2, NAMES[:6]).run(None, given)[0].reshape(4, 2, 32)
    assert np.isnan(out[2:, 0]).all()
    assert np.isfinite(out[:2]).all() and np.isfinite(out[:, 1]).all()


def test_what_halves_cannot_hold_becomes_the_largest():
    given = arrays(1, 1, 2, 2, 32, 3, 4, NAMES[:6])
    given["qkv"][0, 4 * 32 :] = 1e6
    out, _, values = session(2, 2, NAMES[:6]).run(None, given)
    assert (values[0, :, 3] == np.float16(65504)).all()
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("last", np.array([10], np.int32), "last_indices lie outside the cache"),
        ("last", np.array([0], np.int32), "last_indices lie outside the cache"),
        ("cos", np.zeros((1, 2, 8), np.float32), "the inputs of CachedAttention do not fit together"),
        ("qkv", np.zeros((2, 32), np.float32), "the inputs of CachedAttention do not fit together"),
        ("past_key", np.zeros((1, 4, 10, 24), np.float16), "with D a multiple of 16"),
        ("past_value", np.zeros((1, 4, 9, 32), np.float16), "the inputs of CachedAttention do not fit together"),
    ],
)
def test_tensors_that_do_not_fit(name, value, message):
    given = arrays(1, 2, 4, 4, 32, 5, 10, NAMES[:6])
    with pytest.raises(Exception, match=message):
        session(4, 4, NAMES[:6]).run(None, given | {name: value})


CPP = ROOT / "cpp_ext"
SOURCES = [
    CPP / "tests" / "attention.cpp",
    *(CPP / "attention" / name for name in ("attention_rows.cpp", "cached_attention.cpp")),
    CPP / "matmul" / "layer_rows.cpp",
    CPP / "simd" / "instruction_set.cpp",
]
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{CPP}"]
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"


def compare_in_cpp(compiler: str, program: Path, *flags: str, emulator: tuple[str, ...] = ()) -> str:
    """Compile the comparison of all instruction sets and return its last line."""
    subprocess.run([compiler, *FLAGS, *flags, "-o", program, *SOURCES], check=True)
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no c++")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="only the portable kernels are here")
def test_every_instruction_set_gives_the_same_bits_under_sanitizers(tmp_path):
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    found = compare_in_cpp("c++", tmp_path / "attention", *sanitizers)
    assert set(found.split(":")[1].split()) == set(_core.kernel_variants())


@pytest.mark.skipif(
    shutil.which(CROSS) is None or shutil.which(QEMU) is None,
    reason="Debian: apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_arm_gives_the_same_bits_in_any_way_of_dividing_the_work(tmp_path):
    assert "portable" in compare_in_cpp(CROSS, tmp_path / "attention", "-static", emulator=(QEMU,))
