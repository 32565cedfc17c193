"""Sampling in plain NumPy, float64, after the definitions: what the native sampler is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwenvl_edge.inputs.options import SamplingParams

# The native core computes in float32 and drops what vanishes beside the likeliest token.
UNDERFLOW = -87.0

Row = npt.NDArray[np.float64]


def row_of(size: int, *, seed: int = 0, scale: float = 3.0) -> npt.NDArray[np.float32]:
    """Logits [size] drawn from a normal distribution."""
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def softmax(logits: Row) -> Row:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def reference(
    logits: npt.NDArray[np.float32], params: SamplingParams, previous: list[int], prompt_length: int
) -> tuple[npt.NDArray[np.int64], Row]:
    """Kept ids and their probabilities."""
    row = process(logits.astype(np.float64), params, previous, prompt_length) / params.temperature
    if params.top_k:
        row[row < np.sort(row)[-min(params.top_k, len(row))]] = -np.inf
    row = keep_top_p(row, params.top_p)
    probabilities = softmax(row)
    row[probabilities < params.min_p * probabilities.max()] = -np.inf
    row = keep_typical(row, params.typical_p)
    kept = np.flatnonzero(row - row.max() >= UNDERFLOW)
    return kept, softmax(row)[kept]


def process(row: Row, params: SamplingParams, previous: list[int], prompt_length: int) -> Row:
    for token in set(previous):
        row[token] = (
            row[token] * params.repetition_penalty if row[token] < 0 else row[token] / params.repetition_penalty
        )
    for token in previous[prompt_length:]:
        row[token] -= params.frequency_penalty
    for token in set(previous[prompt_length:]):
        row[token] -= params.presence_penalty
    for token, bias in params.logit_bias.items():
        row[token : token + 1] += bias
    row[[token for token in params.banned_ids if token < len(row)]] = -np.inf
    return row


def keep_top_p(row: Row, top_p: float) -> Row:
    """Nucleus sampling: a token stays when the mass of all likelier ones is below top_p."""
    if top_p == 1:
        return row
    order = np.argsort(-row, kind="stable")
    before = np.cumsum(softmax(row)[order]) - softmax(row)[order]
    row[order[before >= top_p]] = -np.inf
    return row


def keep_typical(row: Row, mass: float) -> Row:
    """Locally typical sampling: nearest to the entropy first, up to the mass, equals of the last one included."""
    if mass == 1:
        return row
    probabilities = softmax(row)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        distance = np.abs(surprise - np.nansum(probabilities * surprise))
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probabilities[order]) < mass).sum()), len(row) - 1)
    row[distance > distance[order[last]]] = -np.inf
    return row


def chi_square_score(observed: Row, expected: Row) -> float:
    """Pearson's statistic as a normal score (Wilson and Hilferty 1931): 3.1 is a chance of one in a thousand."""
    freedom = len(observed) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)
