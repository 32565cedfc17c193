"""Logits and options that the sampler refuses, and those at the ends of their ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.errors import BackendError, PromptError
from qwenvl_edge.inputs.options import SamplingParams
from support.numpy_sampling import row_of


@pytest.mark.parametrize("place", [0, 15, 64, 999])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_unusable_logits_are_errors(place: int, value: float) -> None:
    logits = row_of(1000)
    logits[place] = value
    for params in (
        SamplingParams(do_sample=False),
        SamplingParams(),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.5),
    ):
        with pytest.raises(BackendError, match="NaN or \\+infinity"):
            Sampler(params).sample(logits)


def test_nothing_left_to_choose_is_an_error() -> None:
    with pytest.raises(BackendError, match="every logit is -infinity"):
        Sampler(SamplingParams()).sample(np.full(10, -np.inf, np.float32))
    with pytest.raises(BackendError, match="every logit is -infinity"):
        Sampler(SamplingParams()).sample(row_of(10), allowed=np.zeros(10, bool))
    with pytest.raises(BackendError, match="row of logits is empty"):
        Sampler(SamplingParams()).sample(np.zeros(0, np.float32))


@pytest.mark.parametrize("logits", [np.zeros(4, np.float64), [0.0, 1.0], np.zeros(4, np.int64)])
def test_logits_of_another_type_are_refused(logits: object) -> None:
    with pytest.raises(TypeError):
        Sampler(SamplingParams()).sample(logits)  # type: ignore[arg-type]


def test_shapes_are_checked() -> None:
    with pytest.raises(BackendError, match=r"one row \[V\]"):
        Sampler(SamplingParams()).sample(np.zeros((1, 4), np.float32))
    with pytest.raises(BackendError, match="needs 4 entries"):
        Sampler(SamplingParams()).sample(np.zeros(4, np.float32), allowed=np.ones(3, bool))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"typical_p": 0}, "typical_p is 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be more than 0"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"logit_bias": {-1: 0.5}}, "an id of logit_bias is -1"),
        ({"logit_bias": {1: float("inf")}}, "a bias of logit_bias is inf"),
        ({"banned_ids": [2, -3]}, "an id of banned_ids is -3"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_values_out_of_range_are_refused(params: dict, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        SamplingParams(**params)


def test_extreme_temperatures() -> None:
    logits = row_of(100)
    assert Sampler(SamplingParams(temperature=1e-300)).sample(logits) == int(np.argmax(logits))
    _, probabilities = Sampler(SamplingParams(temperature=1e30)).distribution(logits)
    np.testing.assert_allclose(probabilities, 0.01)


EXTREME = st.sampled_from([5e-324, 1e-40, 1.0, 1e39, 1e308])


@given(
    EXTREME,
    EXTREME,
    st.sampled_from([1.0, -1.0]),
    EXTREME,
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=4),
)
def test_options_however_large_leave_logits_usable(
    repetition: float, other: float, sign: float, temperature: float, values: list[float]
) -> None:
    logits = np.array(values, np.float32)
    sampler = Sampler(
        SamplingParams(
            temperature=temperature,
            repetition_penalty=repetition,
            presence_penalty=sign * other,
            frequency_penalty=-sign * other,
            logit_bias={1: -sign * other, 2: sign * other},
            banned_ids=(3,),
            seed=1,
        )
    )
    ids, probabilities = sampler.distribution(logits, [0, 1, 2, 2], prompt_length=1)
    assert 3 not in ids and np.isfinite(probabilities).all() and probabilities.sum() == pytest.approx(1)
