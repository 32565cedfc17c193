"""The sampler against a plain NumPy reference and Hugging Face's definitions; statistics of its draws."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge import _core
from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.errors import BackendError
from qwenvl_edge.inputs.options import SamplingParams
from support.numpy_sampling import chi_square_score, reference, row_of, softmax

SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 10**6},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"top_k": 40, "top_p": 0.8, "temperature": 1.3},
    {"top_k": 200, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8, "temperature": 0.9},
    {"repetition_penalty": 1.3, "top_k": 30},
    {"repetition_penalty": 0.8, "presence_penalty": 0.6, "frequency_penalty": -0.4, "top_p": 0.7},
    {"logit_bias": {3: 5.0, 7: -2.0}, "banned_ids": (0, 11), "top_p": 0.9},
]
SIZES = [1, 2, 63, 64, 65, 1000, 1024, 1025, 20_000]


def kept(logits: npt.NDArray[np.float32], **params: object) -> list[int]:
    return Sampler(SamplingParams(seed=0, **params)).distribution(logits)[0].tolist()  # type: ignore[arg-type]


def check_against_reference(
    logits: npt.NDArray[np.float32], params: SamplingParams, previous: list[int], prompt_length: int = 0
) -> None:
    ids, probabilities = Sampler(params).distribution(logits, previous, prompt_length=prompt_length)
    wanted_ids, wanted = reference(logits, params, previous, prompt_length)
    if ids.tolist() != wanted_ids.tolist():
        # float32 may put a token on the other side of a limit that it lies on within rounding.
        assert len(np.setxor1d(ids, wanted_ids)) == 1
        looser, tighter = (reference(logits, _nudged(params, by), previous, prompt_length)[0] for by in (1e-5, -1e-5))
        assert set(tighter) <= set(ids.tolist()) <= set(looser)
    else:
        np.testing.assert_allclose(probabilities, wanted, rtol=3e-5, atol=1e-12)
    assert probabilities.sum() == pytest.approx(1)


def _nudged(params: SamplingParams, by: float) -> SamplingParams:
    limits = {"top_p": min(1.0, params.top_p + by), "typical_p": min(1.0, params.typical_p + by)}
    return replace(params, min_p=max(0.0, params.min_p - by), **{name: max(v, 1e-12) for name, v in limits.items()})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_kept_set_and_probabilities(size: int, params: dict) -> None:
    if size == 1 and "banned_ids" in params:
        params = params | {"banned_ids": (11,)}
    previous = [token % size for token in (5, 7, 5, 900, 12_345, 7, 7)]
    for seed, scale in ((0, 3.0), (1, 0.01), (2, 12.0)):
        check_against_reference(row_of(size, seed=seed, scale=scale), SamplingParams(**params), previous, 2)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-500, 500), min_size=1, max_size=200),
    st.floats(0.05, 5),
    st.integers(0, 12),
    st.floats(0.01, 1),
    st.floats(0, 0.5),
)
def test_any_row(eighths: list[int], temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = np.array(eighths, np.float32) / 8
    ids, probabilities = Sampler(params).distribution(logits)
    wanted_ids, wanted = reference(logits, params, [], 0)
    difference = np.setxor1d(ids, wanted_ids)
    # Ids may differ only where numbers cannot tell: exact ties at a limit, or weights that vanish in a float64 sum.
    everything = softmax(logits.astype(np.float64) / temperature)
    assert len(difference) <= 1 or everything[difference].max() < 1e-15
    if len(difference) == 0:
        np.testing.assert_allclose(probabilities, wanted, rtol=1e-4, atol=1e-12)


def test_ties() -> None:
    equal = np.zeros(300, np.float32)
    assert kept(equal, top_k=3) == list(range(300))
    assert kept(equal, top_p=0.5) == list(range(150))
    assert kept(equal, do_sample=False) == [0]
    stairs = np.array([1, 2, 2, 3, 2], np.float32)
    assert kept(stairs, top_k=2) == [1, 2, 3, 4]


def test_minus_infinity_is_never_kept() -> None:
    logits = np.full(2000, -np.inf, np.float32)
    logits[[3, 1500]] = [1.0, 1.0]
    for params in SETTINGS[:14]:
        assert set(kept(logits, **params)) <= {3, 1500}
    assert kept(logits, top_k=100) == [3, 1500]


def test_greedy_takes_the_first_of_the_largest() -> None:
    for size in SIZES:
        logits = row_of(size)
        sampler = Sampler(SamplingParams(do_sample=False))
        assert sampler.sample(logits) == int(np.argmax(logits))
        logits[size // 2 :] = 99
        assert sampler.sample(logits) == size // 2
    assert Sampler(SamplingParams(temperature=0)).sample(np.array([1, 3, 2], np.float32)) == 1


def test_greedy_follows_penalties_and_masks() -> None:
    logits = np.array([5, 4, 3, 2], np.float32)
    assert Sampler(SamplingParams(do_sample=False, repetition_penalty=2)).sample(logits, [0]) == 1
    assert Sampler(SamplingParams(do_sample=False, banned_ids=(0, 1))).sample(logits) == 2
    assert Sampler(SamplingParams(do_sample=False, logit_bias={3: 10})).sample(logits) == 3
    allowed = np.array([False, False, True, True])
    assert Sampler(SamplingParams(do_sample=False)).sample(logits, allowed=allowed) == 2
    assert Sampler(SamplingParams(do_sample=False)).sample(logits, allowed=b"\0\0\0\xc8") == 3
    with pytest.raises(BackendError, match="mask of allowed ids needs 4 entries"):
        Sampler(SamplingParams(do_sample=False)).sample(logits, allowed=b"\1\1\1")
    assert logits.tolist() == [5, 4, 3, 2]


def test_repetition_looks_at_the_prompt_and_presence_does_not() -> None:
    logits = np.array([5, 4, 3, 2], np.float32)
    presence = Sampler(SamplingParams(do_sample=False, presence_penalty=3))
    assert presence.sample(logits, [0, 1], prompt_length=1) == 0
    assert presence.sample(logits, [0, 1], prompt_length=0) == 2
    frequency = Sampler(SamplingParams(do_sample=False, frequency_penalty=0.6))
    assert frequency.sample(logits, [0]) == 0
    assert frequency.sample(logits, [0, 0]) == 1


def test_previous_ids_outside_the_row_are_ignored() -> None:
    sampler = Sampler(SamplingParams(do_sample=False, repetition_penalty=2, presence_penalty=1))
    assert sampler.sample(np.array([1, 2], np.float32), [2, 10**9]) == 1


def test_previous_ids_leave_nothing_behind() -> None:
    sampler = Sampler(SamplingParams(do_sample=False, frequency_penalty=1.5))
    logits = np.array([5, 4], np.float32)
    assert [sampler.sample(logits, [0]), sampler.sample(logits, [1]), sampler.sample(logits)] == [1, 0, 0]
    with pytest.raises(BackendError, match="token id -1 is negative"):
        sampler.sample(logits, [0, -1])
    assert sampler.sample(logits) == 0


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.6}, {"top_k": 12}, {"top_p": 0.9}, {"typical_p": 0.8}], ids=str
)
def test_draws_follow_the_distribution(params: dict) -> None:
    logits = row_of(40, scale=1.0)
    sampler = Sampler(SamplingParams(seed=7, **params))
    ids, probabilities = sampler.distribution(logits)
    draws = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=40)
    assert draws.sum() == draws[ids].sum()
    assert chi_square_score(draws[ids], probabilities * 20_000) < 3.1


def test_draws_follow_the_distribution_of_a_long_row() -> None:
    logits = row_of(5000, scale=2.0)
    sampler = Sampler(SamplingParams(seed=3))
    draws = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=5000)
    wanted = softmax(logits.astype(np.float64)) * 20_000
    bins = np.arange(5000) // 500
    assert chi_square_score(np.bincount(bins, draws), np.bincount(bins, wanted)) < 3.1


def test_seeds() -> None:
    logits = row_of(1000, scale=1.0)

    def tokens(sampler: Sampler) -> list[int]:
        return [sampler.sample(logits) for _ in range(20)]

    first = Sampler(SamplingParams(seed=5))
    once = tokens(first)
    assert tokens(Sampler(SamplingParams(seed=5))) == once
    assert tokens(first) != once
    assert tokens(Sampler(SamplingParams(seed=2**64 - 1))) != once
    assert tokens(Sampler(SamplingParams())) != tokens(Sampler(SamplingParams()))


def test_the_same_tokens_on_every_platform() -> None:
    """Figures written down once: another platform, compiler or instruction set has to repeat them."""
    logits = (np.arange(1000, dtype=np.int64) * 7919 % 1000).astype(np.float32) / 128
    plain = Sampler(SamplingParams(seed=2023))
    nucleus = Sampler(SamplingParams(seed=2023, top_p=0.8, temperature=1.5))
    assert [plain.sample(logits) for _ in range(8)] == PLATFORM_PLAIN
    assert [nucleus.sample(logits) for _ in range(8)] == PLATFORM_NUCLEUS


PLATFORM_PLAIN = [815, 522, 828, 717, 989, 149, 186, 223]
PLATFORM_NUCLEUS = [815, 521, 828, 717, 989, 149, 186, 223]


@pytest.mark.parametrize("size", [1, 15, 17, 511, 512, 513, 1025, 20_011])
def test_every_instruction_set_gives_the_same_bits(size: int) -> None:
    logits = row_of(size, scale=20.0)
    logits[size // 3] = -np.inf
    logits[size // 2] = 90.0
    results = []
    try:
        for name in _core.kernel_variants():
            _core.use_kernels(name)
            sampler = Sampler(SamplingParams(seed=11, temperature=1.7))
            ids, probabilities = sampler.distribution(logits)
            tokens = [sampler.sample(logits) for _ in range(50)]
            results.append((ids.tolist(), probabilities.tobytes(), tokens, sampler.log_prob(logits, size // 2)))
            for bad in (0, size - 1):
                spoiled = logits.copy()
                spoiled[bad] = np.nan
                with pytest.raises(BackendError, match="NaN"):
                    sampler.sample(spoiled)
    finally:
        _core.use_kernels(_core.kernel_variants()[0])
    assert results == results[:1] * len(results)
    assert _core.kernel_variants()[-1] == "portable"


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="no kernels named mmx"):
        _core.use_kernels("mmx")


def test_the_generator_is_philox() -> None:
    """The published answer of Philox4x32-10 for key 0 and counter 0 begins with 6627e8d5."""
    assert Sampler(SamplingParams(seed=0)).sample(np.zeros(0x10000, np.float32)) == 0x6627


def test_log_probabilities_are_those_of_the_logits() -> None:
    logits = row_of(3000)
    sampler = Sampler(SamplingParams(temperature=0.5, top_k=5))
    wanted = np.log(softmax(logits.astype(np.float64)))
    assert sampler.log_prob(logits, 17) == pytest.approx(wanted[17], abs=1e-5)
    top = sampler.top_log_probs(logits, 5)
    assert [token for token, _ in top] == np.argsort(-logits, kind="stable")[:5].tolist()
    assert [value for _, value in top] == pytest.approx(wanted[[token for token, _ in top]].tolist(), abs=1e-5)
    assert sampler.top_log_probs(logits, 0) == []
    assert len(sampler.top_log_probs(row_of(3), 10)) == 3
    with pytest.raises(BackendError, match="token id 3000 is outside the row of 3000"):
        sampler.log_prob(logits, 3000)


def test_concurrent_calls_are_safe() -> None:
    sampler = Sampler(SamplingParams(top_p=0.9, repetition_penalty=1.2, seed=1))
    rows = [row_of(3000 + 500 * i, seed=i) for i in range(4)]
    tokens: list[list[int]] = [[] for _ in rows]

    def work(slot: int) -> None:
        tokens[slot] = [sampler.sample(rows[slot], [1, 2, 3]) for _ in range(200)]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for slot, row in enumerate(rows):
        assert len(tokens[slot]) == 200  # no thread broke off
        assert set(tokens[slot]) <= set(sampler.distribution(row, [1, 2, 3])[0].tolist())
