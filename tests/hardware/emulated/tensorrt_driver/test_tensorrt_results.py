"""What the TensorRT driver computes, on the stand-in: the numbers of ONNX Runtime on the same graph."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from qwenvl_edge.backends.base import Placed
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.cli import main
from qwenvl_edge.errors import BackendError
from qwenvl_edge.families.base import RotaryRows
from support.decoding import assert_same, both, decode, embeds, noise, pictured, rotary
from support.dialects import RUNNABLE
from support.standin import plans
from support.standin.machine import Machine

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")
HIDDEN, SIZE, IMAGE_TOKENS = 256, 56, 256


def test_prefill_steps_and_verification(backend, reference):
    logits = []
    for side, cache in both(backend, reference):
        found = [decode(side, cache, 20)]
        found += [decode(side, cache, 1, seed=seed) for seed in range(1, 5)]
        found.append(decode(side, cache, 7, seed=5, wanted=range(7)))
        found.append(decode(side, cache, 1, seed=6, write=22))  # back to an earlier place
        found += [decode(side, cache, tokens, seed=tokens) for tokens in (2, 1, 2, 1)]
        assert cache.length == 29
        logits.append(np.concatenate(found, axis=1))
    assert_same(*logits)


@pytest.mark.parametrize("wanted", [[], [99], list(range(80, 100)), list(range(100)), [70, 3, 3]])
def test_calls_larger_than_the_plan_are_made_in_pieces(backend, reference, wanted):
    assert_same(*(decode(side, cache, 100, wanted=wanted) for side, cache in both(backend, reference, capacity=128)))


def test_rows_of_different_length(backend, reference):
    logits = []
    for side, cache in both(backend, reference, batch=3):
        decode(side, cache, 9)
        steps = [decode(side, cache, 1, seed=seed, write=[2 + seed, 5 + seed, 8 + seed]) for seed in range(4)]
        logits.append(np.concatenate(steps, axis=1))
    assert_same(*logits)


def test_caches_in_turns_do_not_disturb_each_other(backend, reference):
    logits = []
    for side in (backend, reference):
        caches = [side.new_cache(1, 32) for _ in range(2)]
        for seed, cache in enumerate(caches):
            decode(side, cache, 5, seed=seed)
        logits.append(np.concatenate([decode(side, caches[i % 2], 1, seed=i) for i in range(8)], axis=1))
    assert_same(*logits)


def test_rotary_rows_and_query_scales_are_those_of_the_call(backend, reference):
    """Also in a step that is replayed: a longer prompt's rows, then others with the same addresses."""
    logits = []
    for side, cache in both(backend, reference, capacity=64):
        found = [decode(side, cache, 6, prompt=2000)]
        for i in range(4):
            rows = rotary(side, np.array([cache.length]), 1, prompt=1 + 1000 * i)
            rows = RotaryRows(rows.cos, rows.sin, rows.query_scale + i)
            step = (embeds(side, 1, seed=i), rows, np.array([cache.length]), np.zeros((1, 1), np.int64))
            found.append(side.decode(cache, *step))
        logits.append(np.concatenate(found, axis=1))
    assert_same(*logits)


def test_a_copied_prefix_and_rows_of_a_batch(backend, reference):
    logits = []
    for side in (backend, reference):
        source, batch = side.new_cache(1, 32), side.new_cache(3, 32)
        decode(side, source, 6)
        for row, tokens in ((0, 6), (2, 4)):
            side.copy_cache(source, batch, tokens, row=row)
        last = side.rows(batch, 2, 1)
        last.length = 4
        steps = [decode(side, last, 1, seed=seed) for seed in range(3)]
        first = side.rows(batch, 0, 1)
        logits.append(np.concatenate([*steps, decode(side, first, 1, write=6)], axis=1))
    assert_same(*logits)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pictures_go_through_in_as_many_runs_as_the_plan_needs(backend, reference, count):
    pixels = np.random.default_rng(0).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)
    assert_same(backend.encode_pixels(pixels), reference.encode_pixels(pixels))


@pytest.mark.parametrize("integrated", [False, True])
def test_features_stay_on_the_gpu(bundle, open_backend, reference, integrated):
    """Kept features, whole and in parts, behind a prefix, over a call's tokens, also where a call is made in pieces."""
    backend, _ = open_backend(bundle, integrated=integrated)
    logits = []
    for side in (backend, reference):
        features = [side.encode(noise(seed)) for seed in (3, 4)]
        assert [len(each) for each in features] == [IMAGE_TOKENS] * 2
        side.encode(noise(5))  # does not overwrite the features before
        cache = side.new_cache(1, 200)
        calls = [(9, [Placed(features[0], 2, 0, 7)]), (1, [Placed(features[0], 0, 7, 1)])]
        calls += [(150, [Placed(features[0], 0, 8, 8), Placed(features[1], 50, 0, 90)]), (1, [])]
        for tokens, pictures in calls:
            rows, start = embeds(side, tokens), cache.length
            wanted = np.array([[tokens - 1]])
            turned = rotary(side, np.array([start]), tokens)
            logits.append(side.decode(cache, rows, turned, np.array([start]), wanted, pictures))
    assert_same(np.concatenate(logits[:4]), np.concatenate(logits[4:]))


def test_a_picture_in_two_calls(backend, reference):
    assert_same(pictured(backend), pictured(reference))


def test_results_are_not_overwritten_by_the_next_call(backend):
    cache = backend.new_cache(1, 32)
    first = decode(backend, cache, 3)
    kept = first.copy()
    decode(backend, cache, 3, seed=1)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(("attribute", "reason"), [("capturable", "end a capture"), ("instantiable", "instantiate a")])
def test_what_cannot_be_captured_is_enqueued(bundle, open_backend, reference, attribute, reason):
    backend, machine = open_backend(bundle)
    assert "CUDA graphs" not in backend.describe()
    setattr(machine, attribute, False)
    (_, cache), other = both(backend, reference)
    for _ in range(4):
        assert_same(decode(backend, cache, 1), decode(*other, 1))
    assert machine.counts["launches"] == 0
    assert f"; tokens run without CUDA graphs (CUDA could not {reason}" in backend.describe()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cache_works_again_after_nan(backend, reference, value):
    (_, cache), other = both(backend, reference)
    with pytest.raises(BackendError, match="the logits hold NaN or infinity"):
        decode(backend, cache, np.full((1, 8, HIDDEN), value, np.float32))
    assert cache.length == 0
    assert_same(decode(backend, cache, 3), decode(*other, 3))
    with pytest.raises(BackendError, match="the image features hold NaN or infinity"):
        backend.encode_pixels(np.full((1, 3, SIZE, SIZE), value, np.float32))


def test_a_plan_is_verified_like_a_bundle(own_bundle, tiny_checkpoint, monkeypatch, capsys):
    plans.install(monkeypatch, Machine())
    shutil.rmtree(own_bundle.path / "plans")
    plans.write_plan(own_bundle, limits=dataclasses.replace(plans.LIMITS, max_context=1024))
    verify = ["verify", str(own_bundle.path), "--checkpoint", str(tiny_checkpoint)]
    assert main([*verify, "--backend", "tensorrt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("logits")} == {"tensorrt"}
    assert any(line.endswith("ok") for line in lines) and not any(line.endswith("FAILED") for line in lines)
    assert main([*verify, "--backend", "torch"]) == 2
    assert '"torch"' in capsys.readouterr().err
