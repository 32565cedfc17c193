from __future__ import annotations

import pytest
import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export import weight_formats as quantize
from qwenvl_edge_export.weight_formats import Blocks, Integers, Rows, check_finite, row_pieces


@pytest.fixture
def weight():
    return torch.randn(24, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_rounding_is_within_half_a_step_and_nothing_is_clipped(weight, bits, size):
    blocks = Blocks(bits, size)
    scales = blocks.scales(weight)
    assert scales.shape == (24, 128 // size)
    integers = blocks.integers(weight, scales)
    assert int(integers.max()) < 1 << bits
    error = (blocks.floats(integers, scales) - weight).abs()
    half_precision = weight.abs() * 2**-11  # what the largest of a block may lie beyond its last step
    assert (error <= scales.repeat_interleave(size, dim=1) / 2 + half_precision + 1e-6).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_numbers_of_float16_where_it_has_them(weight, bits):
    blocks = Blocks(bits, 32)
    weight[0] *= 1e-7  # too small for float16 to be near them
    weight[1] *= 1e7  # too large
    scales = blocks.scales(weight)
    assert torch.equal(scales[2:], scales[2:].half().float())
    assert not torch.equal(scales[:2], scales[:2].half().float())
    low, high = torch.aminmax(weight.view(24, 4, 32), dim=-1)
    exact = torch.maximum(low / -blocks.zero, high / (blocks.zero - 1))
    torch.testing.assert_close(scales, exact, rtol=2**-11, atol=0)
    torch.testing.assert_close(scales[:2], exact[:2], rtol=0, atol=0)


def test_the_extreme_value_of_a_block_is_nearly_exact(weight):
    blocks = Blocks(4, 32)
    scales = blocks.scales(weight)
    found = blocks.floats(blocks.integers(weight, scales), scales)
    error = ((found - weight) / weight).abs().view(24, 4, 32)
    assert error.min(dim=-1).values.max() <= 2**-11 + 1e-6


def test_zeros_stay_zero():
    blocks = Blocks(4, 32)
    weight = torch.zeros(2, 64)
    integers = blocks.integers(weight, blocks.scales(weight))
    assert (integers == 8).all()
    assert not blocks.floats(integers, blocks.scales(weight)).any()


def test_the_first_of_two_integers_is_the_low_half():
    integers = torch.arange(16, dtype=torch.uint8).view(1, 16).repeat(1, 2)
    packed = Blocks(4, 32).pack(integers)
    assert packed.shape == (1, 16)
    assert packed[0, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert Blocks(8, 32).pack(integers) is integers


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_integers_are_found_again(weight, bits):
    blocks = Blocks(bits, 32)
    scales = blocks.scales(weight)
    integers = blocks.integers(weight, scales)
    torch.testing.assert_close(blocks.unpack(blocks.pack(integers)), integers)
    kept = Integers(blocks.pack(integers), scales.half(), blocks)
    torch.testing.assert_close(kept.floats(), blocks.floats(integers, scales.half().float()), rtol=0, atol=0)


def test_one_scale_a_row(weight):
    rows = Rows()
    scales = rows.scales(weight)
    assert scales.shape == (24,)
    integers = rows.integers(weight, scales)
    assert integers.dtype == torch.int8 and (integers.abs().amax(dim=1) == 127).all()
    assert ((rows.floats(integers, scales) - weight).abs() <= scales[:, None] / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("inputs", "size", "advice"),
    [(96, 64, "a block size of 32"), (192, 128, "a block size of 32 or 64"), (40, 32, "keep it with --keep-fp16")],
)
def test_a_block_size_that_does_not_divide(inputs, size, advice):
    with pytest.raises(
        CheckpointError, match=f"h.0.w has {inputs} inputs, which do not divide .* of {size}; .*{advice}"
    ):
        Blocks(4, size).check("h.0.w", (8, inputs))


def test_pieces_are_whole_rows(weight, monkeypatch):
    monkeypatch.setattr(quantize, "_PIECE_ELEMENTS", 500)
    pieces = row_pieces(weight.to(torch.bfloat16))
    assert [len(piece) for piece in pieces] == [3] * 8
    torch.testing.assert_close(torch.cat(pieces), weight.to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_show_in_the_scales(weight, value):
    weight[20, 3] = value
    assert not torch.isfinite(Blocks(4, 32).scales(weight)[20, 0])
    assert torch.isfinite(Rows().scales(weight)).sum() == 23


def test_what_is_not_finite_names_the_tensor():
    with pytest.raises(CheckpointError, match=r"the tensor h\.0\.w holds NaN"):
        check_finite("h.0.w", torch.tensor([1.0, float("inf")]))
