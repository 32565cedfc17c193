from __future__ import annotations

import pytest
import torch

from qwenvl_edge_export.quantization.gptq import quantize, relative_loss
from qwenvl_edge_export.weight_formats import Blocks


@pytest.fixture
def layer():
    """A weight and the H of inputs that are correlated, as activations are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 256, generator=generator)
    inputs = torch.randn(2000, 16, generator=generator) @ torch.randn(16, 256, generator=generator)
    inputs += 0.1 * torch.randn(2000, 256, generator=generator)
    return weight, inputs.T @ inputs


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
    damped += 0.01 * damped.diagonal().mean() * torch.eye(len(damped))
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
    weight, inputs = torch.randn(5, 8, generator=generator), torch.randn(30, 8, generator=generator)
    rounded = weight + 0.1
    expected = ((weight - rounded) @ inputs.T).norm() / (weight @ inputs.T).norm()
    assert relative_loss(weight, rounded, inputs.T @ inputs) == pytest.approx(expected.item(), rel=1e-4)
