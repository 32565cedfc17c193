"""Backend's own part of a call: who is checked when, what a token costs in Python, and a caller's own backend."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.base import Placed
from qwenvl_edge.errors import BackendError, ContextError
from support.scripted import FAMILY, MODEL, ScriptedBackend, engine, write_bundle

RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
CALLS_PER_TOKEN = 55
"""Bound of the Python calls of a streamed token outside a backend's `_decode`; decode's checks would be 28 more."""


def call(tokens=3, **changes):
    """Arguments of a decode at batch 1, with changes."""
    return {
        "inputs_embeds": np.ones((1, tokens, MODEL.hidden_size), np.float32),
        "rotary": FAMILY.positions(1).rows(0, tokens),
        "write_indices": np.zeros(1, np.int64),
        "logits_indices": np.array([[tokens - 1]]),
    } | changes


class Own(ScriptedBackend):
    """A backend whose results a test dictates."""

    def __init__(self, logits=None, features=None, **options):
        super().__init__(**options)
        self.logits, self.features = logits, features

    def encode(self, picture):
        return super().encode(picture) if self.features is None else self.features

    def _decode(self, cache, inputs, pictures, length):
        cache.rows[:length] = 1
        return self.logits


def logits(value=0.0, tokens=1, dtype=np.float32):
    return np.full((1, tokens, MODEL.vocab_size), value, dtype)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"inputs_embeds": np.ones((1, 3, 7), np.float32)}, BackendError, "inputs_embeds must be float32"),
        ({"rotary": FAMILY.positions(1).rows(0, 4)}, BackendError, r"rope_cos must be float32 \[1, 3, 2\]"),
        ({"write_indices": np.array([1])}, BackendError, r"write_indices must lie in 0\.\.0 .*; found 1\.\.1"),
        ({"logits_indices": np.array([[3]])}, BackendError, r"logits_indices must lie in 0\.\.2"),
        ({"pictures": [Placed([[1.0]], 0, 0, 1)]}, BackendError, "features of another backend"),
        ({"pictures": [Placed(np.ones((4, 8)), 2, 0, 2)]}, BackendError, "do not fit 3 tokens and 4 rows"),
        (call(9), ContextError, "9 tokens do not fit into a KV cache of 8: 1 too many"),
    ],
)
def test_decode_checks_its_arguments(changes, error, match):
    backend = Own(logits())
    cache = backend.new_cache(1, 8)
    with pytest.raises(error, match=match):
        backend.decode(cache, **call(**changes))
    assert cache.length == 0 and not cache.rows.any()


def test_the_engine_s_calls_still_end_at_the_cache_s_end():
    backend = Own(logits())
    cache = backend.new_cache(1, 8)
    with pytest.raises(ContextError, match="9 tokens do not fit into a KV cache of 8: 1 too many"):
        backend.decode_unchecked(cache, **call(9))
    assert cache.length == 0 and not cache.rows.any()
    assert backend.decode_unchecked(cache, **call(8)).shape == (1, 1, MODEL.vocab_size)
    assert cache.length == 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_empties_the_cache(value):
    backend = Own(logits(value))
    cache = backend.new_cache(1, 8)
    with pytest.raises(BackendError, match="the logits hold NaN or infinity"):
        backend.decode_unchecked(cache, **call())
    assert cache.length == 0 and not cache.rows.any()


@pytest.mark.parametrize("found", [logits(tokens=2), logits(dtype=np.float64), logits()[0]])
def test_logits_of_another_shape_are_refused(found):
    backend = Own(found)
    cache = backend.new_cache(1, 8)
    with pytest.raises(BackendError, match=r"a backend of the caller's returned logits of .* \[1, 1, 2304\]"):
        backend.decode_unchecked(cache, **call())
    assert cache.length == 0


def test_a_backend_for_another_model_is_refused_when_the_engine_opens_it(tmp_path):
    backend = ScriptedBackend(model=dataclasses.replace(MODEL, num_layers=3, head_dim=2))
    with pytest.raises(BackendError, match=r"another model .*: it has num_layers 3 instead of 1, head_dim 2 instead"):
        QwenVLEngine(write_bundle(tmp_path), backend=backend)
    assert not backend.caches


@pytest.mark.parametrize(
    ("features", "match"), [(np.ones((3, 8), np.float32), "3 rows, but it takes 4"), ([[0.0]] * 4, "to a list, but")]
)
def test_features_that_do_not_fit_the_prompt_are_refused(tmp_path, features, match):
    qwen = QwenVLEngine(write_bundle(tmp_path), backend=Own(features=features))
    with pytest.raises(BackendError, match=f"the backend encoded a picture {match}|the backend .* {match}"):
        qwen.chat("hi", images=[RED])


def test_what_a_token_costs_in_python(tmp_path):
    """Counted between tokens of one answer, without what the scripted backend does itself."""
    qwen, backend = engine(tmp_path, "one two three four five six seven eight<|im_end|>")
    stream = iter(qwen.stream("hi", lookup=False))
    for _ in range(3):
        next(stream)
    counts, inside = [], []

    def count(frame, event, _):
        own = frame.f_code is ScriptedBackend._decode.__code__
        if event == "call" and not inside:
            counts[-1] += 1
        if own and event in ("call", "return"):
            inside.append(frame) if event == "call" else inside.clear()

    for _ in range(3):
        counts.append(0)
        sys.setprofile(count)
        next(stream)
        sys.setprofile(None)
    assert backend.steps >= 6 and max(counts) <= CALLS_PER_TOKEN, counts
    assert min(counts) > 10  # the decode loop was seen
