"""Logits to the next token, computed by the native core with the semantics of Hugging Face's logits processors.

Order: repetition, presence and frequency penalty, logit bias, banned and allowed ids, temperature, top-k, top-p, min-p,
typical. The same seed gives the same tokens on every platform.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge import _core
from qwenvl_edge.errors import BackendError
from qwenvl_edge.inputs.options import SamplingParams

Ids = Sequence[int] | npt.NDArray[np.integer]
Logits = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_] | bytes

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""Marks two-byte integers as bfloat16, `raw.view(BFLOAT16)`, where ml_dtypes is not installed."""


class Sampler:
    """Draws tokens one after another; the n-th draw depends on the seed, n and the logits only.

    One sampler belongs to one sequence. Concurrent calls are safe, but then share one stream of random numbers.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._core = _core.Sampler(
            temperature=params.temperature if params.do_sample else 0.0,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=list(params.logit_bias.items()),
            banned_ids=list(params.banned_ids),
            seed=secrets.randbits(64) if params.seed is None else params.seed,
        )

    def sample(
        self,
        logits: Logits,
        previous: Ids = (),
        *,
        prompt_length: int = 0,
        allowed: Mask | None = None,
    ) -> int:
        """Choose the next token.

        Args:
            logits: [V] float32, float16 or bfloat16 (ml_dtypes' type or BFLOAT16), any strides, read in place;
                -infinity marks ids that cannot be chosen.
            previous: prompt and generated ids, for the penalties.
            prompt_length: how many of `previous` are the prompt, which presence and frequency penalty leave out.
            allowed: [V] bool, or bytes of length V; ids whose entry is False or 0 cannot be chosen in this step.

        Raises:
            BackendError: NaN or +infinity in the logits, or no id left to choose.
            TypeError: the logits are no array, or of another dtype.
        """
        try:
            return self._core.sample(logits, previous, prompt_length, allowed)
        except ValueError as error:
            raise BackendError(f"Cannot sample: {error}.") from None

    def distribution(
        self,
        logits: Logits,
        previous: Ids = (),
        *,
        prompt_length: int = 0,
        allowed: Mask | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the ids that `sample` would choose from, ascending, and their probabilities; arguments as there."""
        try:
            return self._core.distribution(logits, previous, prompt_length, allowed)
        except ValueError as error:
            raise BackendError(f"Cannot sample: {error}.") from None

    def log_prob(self, logits: Logits, token_id: int) -> float:
        """Return the natural logarithm of the probability that the logits [V] give an id, before all settings."""
        try:
            return self._core.log_prob(logits, token_id)
        except ValueError as error:
            raise BackendError(f"Cannot compute a log-probability: {error}.") from None

    def top_log_probs(self, logits: Logits, count: int) -> list[tuple[int, float]]:
        """Return the `count` likeliest ids with their log-probabilities, likeliest first, before all settings."""
        try:
            return self._core.top_log_probs(logits, count)
        except ValueError as error:
            raise BackendError(f"Cannot compute log-probabilities: {error}.") from None
