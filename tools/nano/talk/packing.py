"""Attention over rows that hold several conversations about the same pictures.

A row is a prefix with the pictures and a segment for each conversation; a segment sees the prefix and itself. One mask
over the whole row would multiply every segment with every other; gathered by segment, attention takes a quarter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HIDDEN = np.float32(-1e30)
GROUP = 12  # segments of similar length that are computed together


@dataclass(frozen=True)
class _Group:
    """Segments computed together, as places in the flattened rows.

    asking [S, L], seen [S, P + L]: tokens, repeated where a segment is shorter. bias [S, 1, L, P + L]: 0 where a token
    may look, else very negative. taken: which of the S * L results count, those of `tokens`.
    """

    asking: Tensor
    seen: Tensor
    bias: Tensor
    taken: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, members: Iterable[tuple[np.ndarray, np.ndarray]]) -> _Group:
        """Make a group of pairs of a prefix and a segment, places in the flattened rows."""
        pairs = list(members)
        longest = [max(len(pair[part]) for pair in pairs) for part in (0, 1)]
        first = np.array([segment[0] for _, segment in pairs])
        asking, before = (np.repeat(first[:, None], length, axis=1) for length in longest[::-1])
        own, known = np.zeros(asking.shape, bool), np.zeros(before.shape, bool)
        for number, (prefix, segment) in enumerate(pairs):
            before[number, : len(prefix)], known[number, : len(prefix)] = prefix, True
            asking[number, : len(segment)], own[number, : len(segment)] = segment, True
        causal = np.tri(longest[1], dtype=bool)
        mask = np.concatenate((np.repeat(known[:, None], longest[1], axis=1), causal & own[:, None]), axis=2)
        return cls(
            torch.from_numpy(asking),
            torch.from_numpy(np.concatenate((before, asking), axis=1)),
            torch.from_numpy(np.where(mask, np.float32(0), HIDDEN))[:, None],
            torch.from_numpy(np.flatnonzero(own)),
            torch.from_numpy(asking[own]),
        )


class Packed:
    """Tokens that each token sees, in rows of segments [B, T]: 0 the prefix, 1 and more conversations, -1 padding."""

    def __init__(self, segments: Tensor):
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        nothing = np.zeros(0, np.int64)
        for row, numbers in enumerate(segments.numpy()):
            at = row * len(numbers)
            prefix = at + np.flatnonzero(numbers == 0)
            pairs += [(nothing, prefix)] if len(prefix) else []
            pairs += [(prefix, at + np.flatnonzero(numbers == n)) for n in range(1, numbers.max() + 1)]
        pairs.sort(key=lambda pair: (len(pair[0]) > 0, len(pair[1])))
        self._groups = [_Group.of(pairs[i : i + GROUP]) for i in range(0, len(pairs), GROUP)]

    @classmethod
    def single(cls, length: int) -> Packed:
        """One conversation of so many tokens."""
        return cls(torch.zeros(1, length, dtype=torch.int64))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mixed values [B, T, heads * D] of q [B, heads, T, D] and of k, v, which may have fewer heads."""
        batch, _, length, _ = q.shape
        flat_q, flat_k, flat_v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
        parts = []
        for group in self._groups:
            asked = flat_q[group.asking].transpose(1, 2)
            keys, values = (flat[group.seen].transpose(1, 2) for flat in (flat_k, flat_v))
            if keys.shape[1] != asked.shape[1]:
                keys, values = (x.repeat_interleave(asked.shape[1] // x.shape[1], dim=1) for x in (keys, values))
            scores = (asked * asked.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).float() + group.bias
            mixed = scores.softmax(-1).to(values.dtype) @ values  # PyTorch's fused one takes twice the time backwards
            parts.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1)[group.taken])
        tokens = torch.cat([group.tokens for group in self._groups])
        mixed = torch.cat(parts)
        return mixed.new_zeros(batch * length, mixed.shape[1]).index_copy(0, tokens, mixed).view(batch, length, -1)
