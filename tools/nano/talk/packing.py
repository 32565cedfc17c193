"""Attention over rows that hold several conversations about the same pictures.

A row is a prefix with the pictures and a segment for each conversation; a segment sees the prefix and itself. One mask
over the whole row would multiply every segment with every other; gathered by segment, attention takes a quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HIDDEN = np.float32(-1e30)
GROUP = 8  # segments of similar length that are computed together
UNIT = 32  # their lengths are rounded up to it: oneDNN makes code for every new shape, which takes longer than using it
Softmax = Callable[[Tensor, Tensor, float], Tensor]
Pair = tuple[np.ndarray, np.ndarray]  # a prefix and a segment: places of their tokens


@dataclass(frozen=True)
class _Group:
    """Segments computed together. asking [S, L], seen [S, P + L]: places of their tokens, -1 where one is shorter.
    bias [S, 1, 1, L, P + L]: 0 where a token may look, else very negative.
    """

    asking: np.ndarray
    seen: np.ndarray
    bias: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> _Group:
        """Make a group of pairs whose segments are of similar length."""
        longest = (max(len(pair[part]) for pair in pairs) for part in (0, 1))
        before, asking = (np.full((len(pairs), -(-length // UNIT) * UNIT), -1) for length in longest)
        for number, (prefix, segment) in enumerate(pairs):
            before[number, : len(prefix)] = prefix
            asking[number, : len(segment)] = segment
        length = asking.shape[1]
        known = np.repeat(before[:, None] >= 0, length, axis=1)
        mask = np.concatenate((known, np.tri(length, dtype=bool) & (asking >= 0)[:, None]), axis=2)
        bias = torch.from_numpy(np.where(mask, np.float32(0), HIDDEN))[:, None, None]
        return cls(asking, np.concatenate((before, asking), axis=1), bias)


class _Take(torch.autograd.Function):
    """Rows of x [n, D] at `places` [m], zeros where a place is n. first [n]: where each row went, or m.

    rows [r], others [r, k]: where some rows went besides, or m. With them the way back gathers too, where PyTorch's
    own adds up row by row.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, places: Tensor, *back: Tensor) -> Tensor:
        ctx.save_for_backward(*back)
        return _rows(x, places)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, rows, others = ctx.saved_tensors  # type: ignore[attr-defined]
        found = _rows(grads[0], first)
        if len(rows):
            more = _rows(grads[0], others.flatten()).unflatten(0, others.shape).sum(1)
            found.index_add_(0, rows, more)
        return found, None, None, None, None


def _rows(x: Tensor, places: Tensor) -> Tensor:
    return torch.cat((x, x.new_zeros(1, x.shape[1]))).index_select(0, places)


class _Copies:
    """Heads of tokens -> their copies, segment by segment and head by head in it, and back where there is one of each.

    places: of the tokens of each group [S, L], -1 where there is none.
    """

    def __init__(self, places: Sequence[np.ndarray], heads: int, tokens: int):
        count = heads * tokens
        numbers = [each[:, None] * heads + np.arange(heads)[:, None] for each in places]
        index = np.concatenate([np.where(n < 0, count, n).ravel() for n in numbers])
        self._sizes = [each.size * heads for each in places]
        order = np.append(np.argsort(index, kind="stable"), len(index))
        starts = np.searchsorted(index[order[:-1]], np.arange(count + 1))
        many = np.diff(starts)[:, None]
        back = order[np.where(np.arange(many.max()) < many, starts[:-1, None] + np.arange(many.max()), len(index))]
        rows = np.flatnonzero(many > 1)
        self._places, self._first, self._rows, self._others = (
            torch.from_numpy(np.ascontiguousarray(each)) for each in (index, back[:, 0], rows, back[rows, 1:])
        )

    def of(self, x: Tensor) -> tuple[Tensor, ...]:
        """Copies [S * heads * L, D] of x [T, heads, D] for each group."""
        taken: Tensor = _Take.apply(x.flatten(0, 1), self._places, self._first, self._rows, self._others)
        return taken.split(self._sizes)

    def back(self, copies: Sequence[Tensor], heads: int) -> Tensor:
        """[T, heads, D] of the only copies."""
        nothing = self._rows.new_zeros(0)
        taken: Tensor = _Take.apply(torch.cat(list(copies)), self._first, self._places, nothing, nothing)
        return taken.unflatten(0, (-1, heads))


def softmax(scores: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Of scaled scores, in float32."""
    return (scores.float() * scale + bias).softmax(-1).to(scores.dtype)


class Packed:
    """Tokens that each token sees, in rows one after the other, given as the segment of each token, 0 the prefix.

    length: of all rows and what follows them, which sees nothing.
    """

    def __init__(self, rows: Iterable[np.ndarray], length: int):
        pairs: list[Pair] = []
        nothing, at = np.zeros(0, np.int64), 0
        for numbers in rows:
            prefix = at + np.flatnonzero(numbers == 0)
            pairs += [(nothing, prefix)] if len(prefix) else []
            pairs += [(prefix, at + np.flatnonzero(numbers == n)) for n in range(1, numbers.max() + 1)]
            at += len(numbers)
        pairs += [(nothing, nothing)] * (-len(pairs) % GROUP if len(pairs) > 1 else 0)
        pairs.sort(key=lambda pair: (len(pair[0]) > 0, len(pair[1])))
        self._groups = [_Group.of(pairs[i : i + GROUP]) for i in range(0, len(pairs), GROUP)]
        self._length = length
        self._copies: dict[tuple[str, int], _Copies] = {}

    @classmethod
    def single(cls, length: int) -> Packed:
        """One conversation of so many tokens."""
        return cls([np.zeros(length, np.int64)], length)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, softmax: Softmax = softmax) -> Tensor:
        """Mixed values [T, heads * D] of q [T, heads, D] and of k, v, which may have fewer heads.

        Query heads that share a key head are computed as one. PyTorch's fused attention takes twice the time backwards.
        """
        heads, dim = q.shape[1:]
        asking, seen = self._of("asking", heads), self._of("seen", k.shape[1])
        parts = []
        for group, asked, keys, values in zip(self._groups, asking.of(q), seen.of(k), seen.of(v), strict=True):
            shape = len(group.asking), k.shape[1], -1, dim
            scores = (asked.view(shape) @ keys.view(shape).transpose(-1, -2)).unflatten(2, (-1, group.asking.shape[1]))
            weights = softmax(scores, group.bias, dim**-0.5).flatten(2, 3)
            parts.append(
                (weights @ values.view(shape)).view(-1, dim)
            )  # PyTorch's fused one takes twice the time backwards
        return asking.back(parts, heads).flatten(1)

    def _of(self, part: str, heads: int) -> _Copies:
        if (part, heads) not in self._copies:
            places = [getattr(group, part) for group in self._groups]
            self._copies[part, heads] = _Copies(places, heads, self._length)
        return self._copies[part, heads]
