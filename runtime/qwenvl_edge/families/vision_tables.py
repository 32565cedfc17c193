"""Tables that a vision graph needs beside the patches: they follow from a picture's grid alone, and are kept by it.

Patches come token by token, merge x merge of them for each, as `_core.write_patch_values` writes them. Arrays are
read-only.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from qwenvl_edge.families.base import FloatArray

IntArray = npt.NDArray[np.int64]
Array = TypeVar("Array", bound=npt.NDArray[Any])
_KEPT = 16  # grids
_THETA = 10000.0  # fixed in the published code
_NO_TOKEN = -1


class Windows(NamedTuple):
    """Attention windows: gather [W * G] int64, keys [W, 1, 1, G] bool, back [P] int64, as bundle/contract.py says."""

    gather: IntArray
    keys: npt.NDArray[np.bool_]
    back: IntArray


@functools.lru_cache(maxsize=_KEPT)
def rotary_tables(rows: int, columns: int, merge: int, head_dim: int) -> tuple[FloatArray, FloatArray]:
    """Return cosines and sines [P, head_dim / 2] float32: angles of a patch's row, then those of its column."""
    powers = np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2)
    frequencies = np.float32(1) / np.float32(_THETA) ** powers
    places = np.stack(_places(rows, columns, merge), axis=-1).astype(np.float32)
    angles = (places[:, :, None] * frequencies).reshape(len(places), -1)
    return _frozen(np.cos(angles)), _frozen(np.sin(angles))


@functools.lru_cache(maxsize=_KEPT)
def windows(rows: int, columns: int, merge: int, side: int) -> Windows:
    """Return the windows of `side` x `side` tokens that cover a grid of patches, those at its far edges cut off."""
    per_token = merge**2
    tokens = np.full((_ceil(rows // merge, side), _ceil(columns // merge, side)), _NO_TOKEN, np.int64)
    tokens[: rows // merge, : columns // merge] = np.arange(rows * columns // per_token).reshape(rows // merge, -1)
    cut = tokens.reshape(-1, side, tokens.shape[1] // side, side).swapaxes(1, 2).reshape(-1, side**2)
    filled = np.repeat(cut != _NO_TOKEN, per_token, axis=1)
    patches = np.where(filled, (cut[:, :, None] * per_token + np.arange(per_token)).reshape(len(cut), -1), 0)
    back = np.empty(rows * columns, np.int64)
    back[patches[filled]] = np.flatnonzero(filled)
    return Windows(_frozen(patches.reshape(-1)), _frozen(filled[:, None, None]), _frozen(back))


@functools.lru_cache(maxsize=_KEPT)
def interpolation(rows: int, columns: int, merge: int, side: int) -> tuple[IntArray, FloatArray]:
    """Return rows of a learned position table of `side` x `side` and their weights, [P, 4] int64 and float32.

    The table's corners lie on the grid's corners; what lies between is bilinear.
    """
    row, column = _places(rows, columns, merge)
    (top, bottom, down), (left, right, across) = _taps(row, rows, side), _taps(column, columns, side)
    index = np.stack([y * side + x for y in (top, bottom) for x in (left, right)], axis=-1)
    weight = np.stack([y * x for y in (1 - down, down) for x in (1 - across, across)], axis=-1)
    return _frozen(index), _frozen(weight.astype(np.float32))


def _taps(place: IntArray, count: int, side: int) -> tuple[IntArray, IntArray, npt.NDArray[np.float64]]:
    source = place * (side - 1) / max(count - 1, 1)
    low = np.floor(source).astype(np.int64)
    return low, np.minimum(low + 1, side - 1), source - low


def _places(rows: int, columns: int, merge: int) -> tuple[IntArray, IntArray]:
    """Return the row and the column of every patch [P]."""
    grid = np.mgrid[:rows, :columns].reshape(2, rows // merge, merge, columns // merge, merge)
    row, column = grid.swapaxes(2, 3).reshape(2, -1)
    return row, column


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
