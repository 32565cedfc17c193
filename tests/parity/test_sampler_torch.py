"""The sampler beside PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from qwenvl_edge.decoding.sampler import Sampler, SamplingParams


def test_agrees_with_torch_on_the_definition_of_top_p() -> None:
    """Hugging Face's top-p: ascending order, tokens whose cumulative probability stays within 1 - top_p go."""
    logits = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        ordered, order = torch.sort(torch.from_numpy(logits).double())
        removed = order[ordered.softmax(-1).cumsum(-1) <= 1 - top_p]
        wanted = sorted(set(range(5000)) - set(removed.tolist()))
        assert Sampler(SamplingParams(seed=0, top_p=top_p)).distribution(logits)[0].tolist() == wanted
