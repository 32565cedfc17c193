"""Both decoder dialects against PyTorch where the golden figures do not reach: chunks, batches, NTK, log-n."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.decoding import rotary
from support.dialects import DIALECTS
from support.random_checkpoint import config_dict, write_checkpoint
from support.reference import load_model

TOLERANCE = 1e-4
SEQ_LENGTH = 16
CAPACITY = 96
VARIANTS = {
    "published": {},
    "no log-n": {"use_logn_attn": False},
    "no NTK": {"use_dynamic_ntk": False},
    "neither": {"use_logn_attn": False, "use_dynamic_ntk": False},
}


class Pair:
    """The same model twice: PyTorch and a bundle's decoder."""

    def __init__(self, folder, dialect, changes):
        path = write_checkpoint(folder / "checkpoint", raw=config_dict(**changes), seed=3)
        self.model = load_model(Checkpoint.open(path))
        self.bundle = export(path, folder / "bundle", precision=ExportPrecision.choose("fp32"))
        self.backend = OnnxRuntimeBackend(self.bundle, threads=1, dialect=dialect)

    def embeds(self, *shape, seed=0):
        ids = np.random.default_rng(seed).integers(0, 400, shape)
        return self.bundle.embedding[ids]

    @torch.no_grad()
    def expected(self, embeds, alpha=None):
        return self.model.decode(torch.from_numpy(embeds), alpha=alpha)[0].numpy()

    def run(self, cache, embeds, start):
        """Decode embeds [B, T, H] whose rows begin at `start` [B]; logits of every position."""
        batch, tokens = embeds.shape[:2]
        start = np.broadcast_to(np.asarray(start, np.int64), (batch,)).copy()
        turned = rotary(self.backend, start, tokens, self.prompt)
        wanted = np.broadcast_to(np.arange(tokens), (batch, tokens))
        return self.backend.decode(cache, np.ascontiguousarray(embeds), turned, start, wanted)

    def cache(self, batch, prompt, capacity=CAPACITY):
        self.prompt = prompt
        cache = self.backend.new_cache(batch, capacity)
        cache.reset(self.backend.family.positions(prompt))
        return cache


@pytest.fixture(scope="module", params=DIALECTS)
def pair(request, tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("pair"), request.param, {})


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [SEQ_LENGTH, SEQ_LENGTH + 1, 33, 80])
def test_ntk_and_logn(tmp_path_factory, variant_pairs, variant, dialect, length):
    pair = variant_pairs(variant, dialect)
    embeds = pair.embeds(1, length)
    close(pair.run(pair.cache(1, length), embeds, 0), pair.expected(embeds))


@pytest.fixture(scope="module")
def variant_pairs(tmp_path_factory):
    made = {}

    def get(variant, dialect):
        if (variant, dialect) not in made:
            made[variant, dialect] = Pair(tmp_path_factory.mktemp("variant"), dialect, VARIANTS[variant])
        return made[variant, dialect]

    return get


def test_variants_differ_above_seq_length_only(variant_pairs):
    """Otherwise the test above could not tell them apart."""
    pairs = [variant_pairs(variant, "onnxruntime") for variant in VARIANTS]
    for length, apart in ((SEQ_LENGTH, False), (80, True)):
        embeds = pairs[0].embeds(1, length)
        results = [pair.expected(embeds) for pair in pairs]
        for i in range(1, len(results)):
            assert (np.abs(results[i] - results[0]).max() > 100 * TOLERANCE) == apart


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_chunked_prefill_equals_one_shot(pair, chunk):
    embeds = pair.embeds(1, 70)
    cache = pair.cache(1, 70)
    parts = [pair.run(cache, embeds[:, i : i + chunk], i) for i in range(0, 70, chunk)]
    close(np.concatenate(parts, axis=1), pair.expected(embeds))
    assert cache.length == 70


def test_the_prompts_alpha_is_kept_through_decode(pair):
    embeds = pair.embeds(1, 40)
    cache = pair.cache(1, SEQ_LENGTH)
    parts = [pair.run(cache, embeds[:, :SEQ_LENGTH], 0)]
    parts += [pair.run(cache, embeds[:, i : i + 1], i) for i in range(SEQ_LENGTH, 40)]
    found = np.concatenate(parts, axis=1)
    close(found, pair.expected(embeds, alpha=1.0))
    assert np.abs(found - pair.expected(embeds)).max() > 100 * TOLERANCE


def test_verification_of_several_tokens_and_rewinding(pair):
    """Speculative decoding: drafts are checked in one call, rejected ones are overwritten."""
    embeds, drafts = pair.embeds(1, 30), pair.embeds(1, 6, seed=9)
    cache = pair.cache(1, 20)
    pair.run(cache, embeds[:, :20], 0)
    tried = np.concatenate([embeds[:, :20], drafts], axis=1)
    close(pair.run(cache, drafts, 20), pair.expected(tried, alpha=cache.key)[:, 20:])
    assert cache.length == 26
    close(pair.run(cache, embeds[:, 20:24], 20), pair.expected(embeds, alpha=cache.key)[:, 20:24])
    assert cache.length == 24


def test_a_cache_is_empty_after_reset(pair):
    cache = pair.cache(1, 60)
    pair.run(cache, pair.embeds(1, 60, seed=5), 0)
    embeds = pair.embeds(1, 12)
    pair.prompt = 12
    cache.reset(pair.backend.family.positions(12))
    close(pair.run(cache, embeds, 0), pair.expected(embeds))


def test_batched_prefill_and_decode_with_rows_of_different_lengths(pair):
    lengths = [9, 14, 12]
    embeds = pair.embeds(3, 20)
    cache = pair.cache(3, max(lengths))
    # Rows are padded behind their tokens; what the padding wrote is overwritten as each row goes on.
    prefill = pair.run(cache, embeds[:, : max(lengths)], 0)
    for row, length in enumerate(lengths):
        expected = pair.expected(embeds[row : row + 1], alpha=1.0)[0]
        close(prefill[row, :length], expected[:length])
    for i in range(4):
        at = np.array(lengths) + i
        step = embeds[np.arange(3), at][:, None]
        logits = pair.run(cache, step, at)
        for row in range(3):
            close(logits[row, 0], pair.expected(embeds[row : row + 1], alpha=1.0)[0, at[row]])


def test_several_tokens_behind_a_cache_at_batch_2(pair):
    embeds = pair.embeds(2, 20)
    cache = pair.cache(2, 12)
    pair.run(cache, embeds[:, :12], 0)
    if pair.backend.dialect == "onnxruntime":
        with pytest.raises(BackendError, match="at batch 1 only, not 2"):
            pair.run(cache, embeds[:, 12:15], 12)
        assert cache.length == 12
    else:
        close(pair.run(cache, embeds[:, 12:15], [12, 12]), pair.expected(embeds, alpha=1.0)[:, 12:15])


def test_logits_of_the_wanted_positions_only(pair):
    embeds = pair.embeds(2, 10)
    expected = pair.expected(embeds)
    start = np.zeros(2, np.int64)
    turned = rotary(pair.backend, start, 10, prompt=10)
    wanted = np.array([[9, 0, 3], [2, 2, 9]])
    found = pair.backend.decode(pair.cache(2, 10), embeds, turned, start, wanted)
    close(found, expected[np.arange(2)[:, None], wanted])
    nothing = pair.backend.decode(pair.cache(2, 10), embeds, turned, start, np.zeros((2, 0), np.int64))
    assert nothing.shape == (2, 0, 480)


def test_capacity_does_not_change_the_result(pair):
    embeds = pair.embeds(1, 25)
    expected = pair.expected(embeds)
    for capacity in (25, 26, 500):
        close(pair.run(pair.cache(1, 25, capacity), embeds, 0), expected)


def test_cache_holds_keys_after_rotary_embedding(pair):
    embeds = pair.embeds(1, 20)
    cache = pair.cache(1, 20)
    pair.run(cache, embeds, 0)
    with torch.no_grad():
        expected = pair.model.decode(torch.from_numpy(embeds))[1]
    for i, (key, value) in enumerate(expected):
        close(cache.buffers.arrays[f"past_key_values.{i}.key"][:, :, :20], key)
        close(cache.buffers.arrays[f"past_key_values.{i}.value"][:, :, :20], value)
        assert not cache.buffers.arrays[f"past_key_values.{i}.key"][:, :, 20:].any()
