from __future__ import annotations

import pytest
import torch

from qwenvl_edge_export.quantization.smoothquant import InputSample, quantize_inputs, smooth
from qwenvl_edge_export.weight_formats import InputScales, StaticRows

INPUTS, OUTPUTS = 64, 48


def sample(*calls: torch.Tensor, rows: int = 512) -> InputSample:
    seen = InputSample(len(calls), rows)
    for inputs in calls:
        seen.add(inputs)
    return seen


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def weight(random):
    return torch.randn(OUTPUTS, INPUTS, generator=random)


@pytest.fixture
def uneven(random):
    """Inputs with three channels fifty times as large as the rest."""
    rows = torch.randn(200, INPUTS, generator=random)
    rows[:, [3, 20, 41]] *= 50
    return rows


def outputs(rows: torch.Tensor, weight: torch.Tensor, given: InputScales) -> torch.Tensor:
    """What the quantized layer computes, in integers."""
    static, smoothed = StaticRows(), weight * given.factors
    scales = static.scales(smoothed)
    x = (rows / given.factors / given.scale).round().clamp(-128, 127).long()
    return (x @ static.integers(smoothed, scales).long().T).float() * scales * given.scale


def test_every_channel_and_some_rows_are_remembered(random):
    calls = [torch.randn(1, 30, INPUTS, generator=random), torch.randn(5, INPUTS, generator=random)]
    seen = sample(*calls, rows=20)
    every = torch.cat([calls[0][0], calls[1]])
    torch.testing.assert_close(seen.largest, every.abs().amax(dim=0))
    assert seen.rows.shape == (15, INPUTS)
    assert (seen.rows[:, None] == every).all(-1).any(-1).all()


def test_smoothing_helps_where_channels_differ(weight, uneven):
    given, losses = smooth([weight], sample(uneven * 0.02))
    assert losses["calibrated"] < 0.5 * losses["rtn"]
    wanted = uneven[50:] * 0.02 @ weight.T
    found = outputs(uneven[50:] * 0.02, weight, given)
    assert (found - wanted).norm() / wanted.norm() == pytest.approx(losses["calibrated"], rel=0.3)


def test_inputs_lie_within_the_scale_and_rounding_is_to_half_a_step(weight, uneven):
    given, _ = smooth([weight], sample(uneven))
    exact = uneven / given.factors
    assert exact.abs().max() <= 127.001 * given.scale
    assert (quantize_inputs(uneven, given) - exact).abs().max() <= 0.501 * given.scale


def test_layers_with_the_same_inputs_share_the_factors(weight, uneven, random):
    other = torch.randn(OUTPUTS, INPUTS, generator=random) * torch.linspace(0.1, 9, INPUTS)
    alone, both = smooth([weight], sample(uneven))[0], smooth([weight, other], sample(uneven))[0]
    assert not torch.equal(alone.factors, both.factors)


def test_inputs_that_cannot_be_quantized_stay_floats(weight, random):
    """In every channel a few values are far larger than the rest, so that no factor evens them out."""
    given, losses = smooth([weight], sample(torch.randn(400, INPUTS, generator=random) ** 5))
    assert given is None
    assert losses["calibrated"] < 0.01 < 0.02 < losses["rtn"]


def test_channels_that_never_occur(weight):
    rows = torch.randn(100, INPUTS, generator=torch.Generator().manual_seed(2))
    rows[:, 7] = 0
    given, _ = smooth([weight], sample(rows))
    assert given.factors[7] == 1
    assert torch.isfinite(given.factors).all() and given.scale > 0
    given, _ = smooth([weight], sample(torch.zeros(4, INPUTS)))
    assert (given.factors == 1).all() and given.scale == 1
