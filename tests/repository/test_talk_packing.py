"""Attention of packed conversations in tools/nano/talk, and its compiled pieces."""

import numpy as np
import pytest
import torch

from tools.nano.talk.fusing import can_compile, fused
from tools.nano.talk.packing import Packed, softmax


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_packed_attention_is_masked_attention(groups):
    """Values and gradients are those of PyTorch's attention under a mask over all tokens."""
    rows = [[0] * 5 + [1] * 40 + [2] * 3, [1] * 4, [0] * 2, *([[0] * 7 + [1] * 2 + [2] * 6 + [3]] * 4)]
    length = sum(map(len, rows)) + 10
    row = np.concatenate([np.full(len(each), number) for number, each in enumerate(rows)] + [np.full(10, -1)])
    segment = np.concatenate([*rows, np.zeros(10, int)])
    sees = (row[:, None] == row) & ((segment[:, None] == segment) | (segment == 0)) & np.tri(length, dtype=bool)
    torch.manual_seed(0)
    q, k, v = (torch.randn(length, heads, 16, requires_grad=True) for heads in (4, groups, groups))
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), attn_mask=torch.from_numpy(sees), enable_gqa=True
    )
    theirs = theirs.transpose(0, 1).flatten(1)
    real = torch.from_numpy(row >= 0)[:, None]
    ours = Packed([np.array(each) for each in rows], length).attend(q, k, v)
    torch.testing.assert_close(ours, theirs * real, atol=1e-5, rtol=1e-4)
    wish = torch.randn_like(ours) * real
    for mine, reference in zip(
        torch.autograd.grad(ours, (q, k, v), wish), torch.autograd.grad(theirs, (q, k, v), wish), strict=True
    ):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)


def test_a_piece_is_compiled_once_for_all_sizes():
    if not can_compile():
        pytest.skip("torch.compile needs a C++ compiler")
    fast = fused(softmax, (0, 3, 4))
    for number, shape in enumerate(((8, 2, 2, 32, 64), (4, 2, 2, 64, 96), (5, 2, 2, 32, 32))):
        scores, bias = torch.randn(shape, requires_grad=True), torch.randn(shape[0], 1, 1, *shape[3:])
        wish = torch.randn(shape)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            found = fast(scores, bias, 0.2)
        expected = softmax(scores, bias, 0.2)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, scores, wish), torch.autograd.grad(expected, scores, wish)
        )
