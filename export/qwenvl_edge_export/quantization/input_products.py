"""The products of a linear layer's inputs over all samples, H = X^T X, and some of the inputs themselves."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 2048  # collected before they are multiplied: a product reads and writes all of H
_COLUMNS = 2048  # H is symmetric, so a strip of so many rows is computed from its diagonal on
_KEPT = 256


class InputProducts:
    """Collects inputs [..., in] of `calls` calls."""

    def __init__(self, inputs: int, calls: int):
        self._total = torch.zeros(inputs, inputs)
        self._each = max(1, _KEPT // calls)
        self._kept: list[Tensor] = []
        self._waiting: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take inputs [..., in], which must stay as they are."""
        rows = x.flatten(0, -2)
        picked = torch.linspace(0, len(rows) - 1, min(self._each, len(rows))).long()
        self._kept.append(rows[picked])
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._multiply()

    def take(self) -> Tensor:
        """H [in, in], which is given away."""
        self._multiply()
        total, self._total = self._total, torch.empty(0)
        for start in range(0, len(total), _COLUMNS):
            end = start + _COLUMNS
            total[end:, start:end] = total[start:end, end:].T
        return total

    @property
    def rows(self) -> Tensor:
        """Some of the inputs, of all calls, [rows, in]."""
        return torch.cat(self._kept)

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)
        self._waiting.clear()
        for start in range(0, rows.shape[1], _COLUMNS):
            end = start + _COLUMNS
            self._total[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])
