from __future__ import annotations

import pytest
import torch

from qwenvl_edge_export.quantization import gptq
from qwenvl_edge_export.quantization.gptq import Rounding, relative_losses, squared_losses
from qwenvl_edge_export.quantization.input_products import InputProducts
from qwenvl_edge_export.weight_formats import Blocks


@pytest.fixture
def layer():
    """A weight and the H of inputs that are correlated, as activations are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 256, generator=generator)
    inputs = torch.randn(2000, 16, generator=generator) @ torch.randn(16, 256, generator=generator)
    inputs += 0.1 * torch.randn(2000, 256, generator=generator)
    return weight, inputs.T @ inputs


def quantize(weight, hessian, blocks, dtype):
    return Rounding(hessian).quantize(weight, blocks, dtype)


def relative_loss(weight, rounded, hessian):
    """As the method defines it, from H."""
    change = weight - rounded
    return float((((change @ hessian) * change).sum() / ((weight @ hessian) * weight).sum()).sqrt())


def nearest(weight, blocks):
    scales = blocks.scales(weight)
    return blocks.floats(blocks.integers(weight, scales), scales)


@pytest.mark.parametrize("blocks", [Blocks(4, 32), Blocks(4, 128), Blocks(8, 32)])
def test_outputs_change_less_than_by_rounding(layer, blocks):
    weight, hessian = layer
    integers, scales = quantize(weight, hessian, blocks, torch.float32)
    assert integers.dtype == torch.uint8
    assert integers.shape == weight.shape
    assert int(integers.max()) < 1 << blocks.bits
    ours = relative_loss(weight, blocks.floats(integers, scales), hessian)
    assert 0 < ours < 0.5 * relative_loss(weight, nearest(weight, blocks), hessian)


def plainly(weight, hessian, blocks):
    """The method as the paper has it: a column at a time, copies wherever they are plainest."""
    scales = blocks.scales(weight)
    order = hessian.diagonal().argsort(descending=True)
    damped = hessian[order][:, order].double()
    damped += gptq._DAMPINGS[0] * damped.diagonal().mean() * torch.eye(len(damped))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    each = scales.repeat_interleave(blocks.size, dim=1)[:, order]
    rest, integers = weight[:, order].double(), torch.empty(weight.shape, dtype=torch.uint8)
    for i, column in enumerate(order.tolist()):
        rounded = (rest[:, i] / each[:, i]).round().clamp(-blocks.zero, blocks.zero - 1)
        integers[:, column] = (rounded + blocks.zero).to(torch.uint8)
        rest[:, i:] -= ((rest[:, i] - rounded * each[:, i]) / upper[i, i])[:, None] * upper[i, i:]
    return integers


@pytest.mark.parametrize("blocks", [Blocks(4, 32), Blocks(8, 64)])
def test_integers_are_those_of_the_plain_method(layer, blocks):
    """In float64; a value half way between two integers may fall to either side, and what follows it then differs."""
    weight, hessian = layer
    before = weight.clone(), hessian.clone()
    integers, _ = quantize(weight, hessian, blocks, torch.float32)
    assert (integers == plainly(weight, hessian, blocks)).float().mean() > 0.99
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


def test_inputs_without_correlation_leave_nothing_to_repair():
    """With H the identity every input is rounded for itself: no integer but the nearest one is better."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    blocks = Blocks(8, 32)
    integers, scales = quantize(weight, torch.eye(64), blocks, torch.float32)
    torch.testing.assert_close(integers, blocks.integers(weight, scales))


def test_inputs_that_never_occur(layer):
    weight, hessian = layer
    hessian = hessian.clone()
    hessian[40:80] = hessian[:, 40:80] = 0
    integers, scales = quantize(weight, hessian, Blocks(4, 32), torch.float32)
    assert torch.isfinite(scales).all()
    found = Blocks(4, 32).floats(integers, scales)
    assert relative_loss(weight, found, hessian) < relative_loss(weight, nearest(weight, Blocks(4, 32)), hessian)


def test_scales_are_rounded_to_the_type_they_are_stored_in(layer):
    weight, hessian = layer
    scales = quantize(weight, hessian, Blocks(4, 32), torch.float16)[1]
    torch.testing.assert_close(scales, scales.half().float(), rtol=0, atol=0)


def test_the_loss_is_that_of_the_outputs():
    generator = torch.Generator().manual_seed(2)
    weight, inputs = torch.randn(6, 8, generator=generator), torch.randn(30, 8, generator=generator)
    rounded = [weight + 0.1, weight * 0.9]
    parts = [squared_losses(weight[i : i + 3], [each[i : i + 3] for each in rounded], inputs) for i in (0, 3)]
    expected = [float(((weight - each) @ inputs.T).norm() / (weight @ inputs.T).norm()) for each in rounded]
    assert relative_losses(sum(parts)) == pytest.approx(expected, rel=1e-4)


def test_rows_of_a_weight_may_be_quantized_apart(layer):
    """Up to what a product of other sizes rounds elsewhere."""
    weight, hessian = layer
    rounding, blocks = Rounding(hessian), Blocks(4, 32)
    whole = rounding.quantize(weight, blocks, torch.float32)
    parts = [rounding.quantize(part, blocks, torch.float32) for part in torch.split(weight, 20)]
    assert (torch.cat([part for part, _ in parts]) == whole[0]).float().mean() > 0.999
    assert torch.equal(torch.cat([scales for _, scales in parts]), whole[1])


def test_a_factor_that_does_not_exist(layer, monkeypatch):
    """More damping is tried, and with none that helps weights are rounded to nearest."""
    weight, hessian = layer
    blocks = Blocks(4, 32)
    broken = hessian - 0.1 * hessian.diagonal().mean() * torch.eye(len(hessian))  # not positive any more
    found = blocks.floats(*quantize(weight, broken, blocks, torch.float32))
    assert relative_loss(weight, found, hessian) < 0.9 * relative_loss(weight, nearest(weight, blocks), hessian)
    monkeypatch.setattr(gptq, "_DAMPINGS", (0.05,))
    integers, scales = quantize(weight, broken, blocks, torch.float32)
    assert torch.equal(integers, blocks.integers(weight, scales))


@pytest.mark.parametrize("lengths", [[3], [2000, 100, 30], [2048], [7] * 400])
def test_products_are_those_of_all_inputs(lengths, monkeypatch):
    monkeypatch.setattr("qwenvl_edge_export.quantization.input_products._COLUMNS", 40)
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(1, length, 96, generator=generator) for length in lengths]
    seen = InputProducts(96, len(lengths))
    for each in inputs:
        seen.add(each)
    whole = torch.cat([each[0] for each in inputs])
    assert 1 <= len(seen.rows) <= max(256, len(lengths))
    torch.testing.assert_close(seen.take(), whole.T @ whole, rtol=1e-4, atol=1e-3)
