"""The int8 KV cache of the standard decoder: what is written, what it loses, and that its scales go where it goes."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from qwenvl_edge.backends.memory_estimate import estimate_memory
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.contract import ONNXRUNTIME, STANDARD
from qwenvl_edge.cli import main
from qwenvl_edge.cli.boards import find_board, plan_for
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.limits import INT8_CACHE_LIMITS, LIMITS
from support.decoding import assert_close, decode, embeds
from support.dialects import RUNNABLE
from support.random_checkpoint import write_checkpoint

needs_standard = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the standard decoder needs ONNX Runtime 1.25")
# A last digit before a rounding to integers can become a whole one behind it.
SHARE = 5e-3


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    source = write_checkpoint(folder / "checkpoint", seed=3)
    chosen = {cache: ExportPrecision.choose("fp32", kv_cache=cache) for cache in ("float", "int8")}
    return {cache: export(source, folder / cache, precision=precision) for cache, precision in chosen.items()}


@pytest.fixture(scope="module")
def backends(bundles):
    return {cache: OnnxRuntimeBackend(bundle, threads=1, dialect=STANDARD) for cache, bundle in bundles.items()}


def open_cache(backend, batch=1, capacity=48):
    return backend.new_cache(batch, capacity)


@needs_standard
def test_losses_are_within_limits_of_their_own(bundles):
    assert bundles["int8"].manifest.precision.kv_cache == "int8"
    rows = [row for row in bundles["int8"].manifest.parity["stages"] if row["stage"] == "logits"]
    assert bundles["int8"].manifest.parity["passed"] and {row["graph"] for row in rows} == {STANDARD, ONNXRUNTIME}
    for row in rows:
        limits = LIMITS["fp32"] if row["graph"] == ONNXRUNTIME else INT8_CACHE_LIMITS
        assert row["max_abs"] <= row["limit"] and row["kl"] <= limits.max_kl
        exact = row["limit"] / limits.max_relative * LIMITS["fp32"].max_relative
        assert (row["max_abs"] <= exact) == (row["graph"] == ONNXRUNTIME)


@needs_standard
def test_rows_are_quantized_to_the_bit(backends):
    """The first layer's keys and values are the same in both graphs, so what is stored of them can be told exactly."""
    caches = {name: open_cache(backend) for name, backend in backends.items()}
    for name, backend in backends.items():
        decode(backend, caches[name], 12)
        decode(backend, caches[name], 3, seed=1)
    floats, stored = (caches[name].buffers.arrays for name in ("float", "int8"))
    for part in ("key", "value"):
        exact = floats[f"past_key_values.0.{part}"]
        scale = np.abs(exact).max(-1) / np.float32(127)
        integers = np.rint(exact / np.where(scale > 0, scale, np.float32(1))[..., None])
        np.testing.assert_array_equal(stored[f"past_key_values.0.{part}"], integers.astype(np.int8))
        np.testing.assert_array_equal(stored[f"past_key_values.0.{part}_scale"], scale)
        assert scale[:, :, :15].all() and not scale[:, :, 15:].any()
        assert np.abs(integers[:, :, :15]).max(-1).min() == 127


@needs_standard
def test_chunks_and_steps_see_what_one_pass_sees(backends):
    backend, rows = backends["int8"], embeds(backends["int8"], 16)
    expected = decode(backend, open_cache(backend), rows, wanted=range(16))
    for bounds in ((0, 5, 11, 16), range(17)):
        cache = open_cache(backend)
        pieces = itertools.pairwise(bounds)
        parts = [decode(backend, cache, rows[:, a:b], wanted=range(b - a)) for a, b in pieces]
        assert_close(np.concatenate(parts, axis=1), expected, SHARE)


@needs_standard
def test_copies_and_rows_take_their_scales_along(backends):
    backend = backends["int8"]
    source, target = open_cache(backend), open_cache(backend, batch=3, capacity=96)
    decode(backend, source, 12)
    backend.copy_cache(source, target, 12, row=1)
    for name, array in source.buffers.arrays.items():
        copied = target.buffers.arrays[name]
        np.testing.assert_array_equal(copied[1, :, :12], array[0, :, :12])
        assert not copied[[0, 2]].any() and not copied[1, :, 12:].any()
    row = backend.rows(target, 1, 1)
    expected = decode(backend, source, 1, seed=5)
    assert_close(decode(backend, row, 1, seed=5), expected, SHARE)
    # With rows of other lengths beside it.
    rows = np.concatenate([embeds(backend, 1, seed=seed) for seed in (7, 5, 8)])
    assert_close(decode(backend, target, rows, write=[0, 12, 3])[1:2], expected, SHARE)


@needs_standard
def test_a_quarter_of_the_memory(backends):
    sizes = {
        name: sum(array.nbytes for array in open_cache(backend, 2).buffers.arrays.values())
        for name, backend in backends.items()
    }
    assert sizes["int8"] == sizes["float"] * (32 + 4) / (4 * 32)


def test_onnxruntimes_own_decoder_keeps_floats_and_says_so(bundles):
    plain, engine = (QwenVLEngine(bundles[name], device="cpu", backend="onnxruntime") for name in ("float", "int8"))
    backends = [OnnxRuntimeBackend(bundles[name], threads=1) for name in ("float", "int8")]
    caches = [open_cache(backend) for backend in backends]
    np.testing.assert_array_equal(*(decode(b, cache, 9) for b, cache in zip(backends, caches, strict=True)))
    assert {array.dtype for array in caches[1].buffers.arrays.values()} == {np.dtype(np.float32)}
    assert "with a float KV cache, since" in engine.describe() and "KV cache" not in plain.describe()


def test_plans_count_the_cache_that_will_be_there(bundles):
    floats, int8 = bundles["float"], bundles["int8"]
    limits = {"max_context": 100, "max_batch": 3}
    numbers = 2 * 2 * 4 * 32 * 100 * (3 + 1)  # a batch has a cache of its own
    assert estimate_memory(int8, **limits).cache == estimate_memory(floats, **limits).cache == 4 * numbers
    assert estimate_memory(int8, **limits, kv_cache="int8").cache == numbers + 4 * numbers // 32
    orin, board_without_gpu = find_board("orin-nano-8gb"), find_board("raspberry-pi-5-8gb")
    assert plan_for(int8, orin, **limits).plan.cache == numbers + 4 * numbers // 32
    assert plan_for(int8, board_without_gpu, **limits).plan == plan_for(floats, board_without_gpu, **limits).plan


def test_the_program_takes_it(bundles, tmp_path, capsys):
    source = bundles["float"].path.parent / "checkpoint"
    arguments = ["export", str(source), str(tmp_path / "bundle"), "--skip-verify", "--kv-cache"]
    assert main([*arguments, "fp8"]) == 2
    assert 'the KV cache "fp8" is not one of float, int8.' in capsys.readouterr().err
    assert main([*arguments, "int8"]) == 0
    assert main(["plan", str(tmp_path / "bundle"), "--max-context", "64"]) == 0


def test_the_manifest_allows_no_other(bundles):
    from qwenvl_edge.bundle.manifest import Manifest
    from qwenvl_edge.errors import BundleError

    manifest = bundles["int8"].manifest
    changed = dataclasses.replace(manifest, precision=dataclasses.replace(manifest.precision, kv_cache="fp8"))
    with pytest.raises(BundleError, match=r'precision\.kv_cache is "fp8"; it must be one of float, int8'):
        Manifest.from_json(changed.to_json())
