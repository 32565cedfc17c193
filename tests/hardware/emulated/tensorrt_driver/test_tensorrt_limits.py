"""What a plan does not take, and how the TensorRT driver says so."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import Plan
from qwenvl_edge.errors import BackendError
from support.decoding import decode
from support.dialects import RUNNABLE
from support.standin import plans, tensorrt_api

pytestmark = pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the stand-in runs the standard decoder")


def test_limits_are_the_plans(backend):
    assert (backend.limits.max_context, backend.limits.max_batch) == (plans.LIMITS.max_context, plans.LIMITS.max_batch)


@pytest.mark.parametrize(
    ("batch", "capacity", "match"),
    [
        (4, 64, r"max-batch of 3, not 4; build it again with `qwenvl build .* --target local --force --max-batch 4`"),
        (1, 513, "max-context of 512, not 513; build it again with .*--max-context 513"),
        (0, 64, "at least 1"),
        (1, 0, "at least 1"),
    ],
)
def test_caches_beyond_the_plan(backend, batch, capacity, match):
    with pytest.raises(BackendError, match=match):
        backend.new_cache(batch, capacity)


def test_several_rows_are_not_made_in_pieces(backend):
    with pytest.raises(BackendError, match="70 tokens of 2 rows with 1 logits each fit no profile"):
        decode(backend, backend.new_cache(2, 128), 70)


def test_no_memory_for_a_cache(bundle, open_backend):
    backend, machine = open_backend(bundle)
    machine.total_bytes = machine.used_bytes + 1000
    used = machine.used_bytes
    with pytest.raises(BackendError, match=r"no memory for a KV cache of 512 tokens.*cudaErrorMemoryAllocation"):
        backend.new_cache(1, 64)
    assert machine.used_bytes == used


def test_a_profile_that_the_engine_does_not_have(own_bundle, open_backend):
    folder = own_bundle.path / "plans" / "local"
    profiles = Plan.open(own_bundle, "local").manifest.profiles
    wider = {**profiles, "prefill": type(profiles["prefill"])(1, (1, 64, 100), (1, 1, 16))}
    plans.change_manifest(folder, profiles=wider)
    backend, _ = open_backend(own_bundle)
    with pytest.raises(BackendError, match=r"could not take inputs_embeds of shape \[1, 100, 256\]: .*satisfyProfile"):
        decode(backend, backend.new_cache(1, 128), 100)
    assert decode(backend, backend.new_cache(1, 128), 64).shape[1] == 1


def test_a_run_that_tensorrt_refuses(backend, monkeypatch):
    """It leaves nothing under way that the next call's inputs would disturb."""
    cache = backend.new_cache(1, 64)
    decode(backend, cache, 5)
    complete = tensorrt_api.IExecutionContext._incomplete
    monkeypatch.setattr(tensorrt_api.IExecutionContext, "_incomplete", lambda self: "the sun shines")
    with pytest.raises(BackendError, match=r'TensorRT 10\.3\.0\.30 could not run "decoder\.plan": .*the sun shines'):
        decode(backend, cache, 5)
    assert cache.length == 5
    with pytest.raises(BackendError, match=r'could not run "vision\.plan": .*the sun shines'):
        backend.encode_pixels(np.zeros((1, 3, 56, 56), np.float32))
    monkeypatch.setattr(tensorrt_api.IExecutionContext, "_incomplete", complete)
    assert np.isfinite(decode(backend, cache, 5, seed=1)).all() and cache.length == 10
