"""The calls that compute a text: its prompt at once, then its answers, by tokens and by chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.verification.limits import FloatArray
from qwenvl_edge_export.verification.streamed_reference import Asked, picture_rows

PROMPT_ROWS = 16
"""Number of a prompt's last positions that are compared; of the answer all are."""
SINGLE_STEPS = 2
"""Number of the first answer's tokens that are decoded one at a time, before the rest in one chunk."""


@dataclass(frozen=True)
class Call:
    """Tokens of one text that are computed together, from place `start` on; logits are wanted from place `first` on.

    embeds: [1, T, H], features in their places. deepstack: [L, 1, T, H], or None without a picture that has some.
    """

    embeds: FloatArray
    start: int
    first: int
    deepstack: FloatArray | None = None

    @property
    def end(self) -> int:
        """The place after the last token."""
        return self.start + int(self.embeds.shape[1])

    @property
    def wanted(self) -> npt.NDArray[np.int64]:
        """Indices [1, K] of the call's tokens that need logits."""
        return np.arange(self.first - self.start, self.end - self.start, dtype=np.int64)[None]


def prompt_call(bundle: Bundle, asked: Asked, first: int) -> Call:
    """The whole prompt."""
    embeds: FloatArray = bundle.embedding[asked.prompt.ids][None]
    layers = max((len(each.deepstack) for each in asked.features if each.deepstack is not None), default=0)
    deepstack = np.zeros((layers, *embeds.shape), np.float32) if layers else None
    for place, picture, part in picture_rows(asked.prompt.spans):
        features = asked.features[picture]
        embeds[0, place] = features.rows[part]
        if deepstack is not None and features.deepstack is not None:
            deepstack[:, 0, place] = features.deepstack[:, part]
    return Call(embeds, 0, first, deepstack)


def token_call(bundle: Bundle, ids: Sequence[int] | npt.NDArray[np.int64], start: int) -> Call:
    """Tokens of an answer, all of which need logits."""
    return Call(bundle.embedding[np.array(ids, np.int64)][None], start, start)


def answer_calls(
    bundle: Bundle, asked: Asked, answer: Sequence[int] | npt.NDArray[np.int64], singles: int
) -> Iterator[Call]:
    """The calls that compute an answer after a prompt: its first tokens one at a time, the rest in one chunk."""
    length, singles = len(asked.prompt.ids), min(singles, len(answer) - 1)
    bounds = [*range(singles + 1), len(answer)] if len(answer) else []
    for start, end in itertools.pairwise(bounds):
        yield token_call(bundle, answer[start:end], length + start)


def calls_of(bundle: Bundle, asked: Asked) -> Iterator[Call]:
    """The calls that compute a prompt and its answers, see Side.logits."""
    yield prompt_call(bundle, asked, max(len(asked.prompt.ids) - PROMPT_ROWS, 0))
    for number, answer in enumerate(asked.answers):
        yield from answer_calls(bundle, asked, answer, SINGLE_STEPS if number == 0 else 0)


def by_answer(rows: Iterator[FloatArray], asked: Asked) -> list[FloatArray]:
    """For each answer the logits [rows, V] of the prompt and its own, from those of the calls in order."""
    prompt = next(rows)
    found = []
    for answer in asked.answers:
        parts, count = [prompt], 0
        while count < len(answer):
            parts.append(next(rows))
            count += len(parts[-1])
        found.append(np.concatenate(parts))
    return found or [prompt]
