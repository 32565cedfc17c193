"""Logits to the next token, computed by the native core with the semantics of Hugging Face's logits processors.

Order: repetition, presence and frequency penalty, logit bias, banned and allowed ids, temperature, top-k, top-p, min-p,
typical. The same seed gives the same tokens on every platform.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenvl_edge import _core
from qwenvl_edge.errors import BackendError, PromptError

Ids = Sequence[int] | npt.NDArray[np.integer]
Logits = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_] | bytes

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""What marks two-byte integers as bfloat16, `raw.view(BFLOAT16)`, where ml_dtypes is not installed."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; the defaults draw from the model's own distribution.

    Attributes:
        do_sample: False takes the likeliest token after penalties and masks (the first one among equals).
        temperature: logits are divided by it; 0 is the same as do_sample=False.
        top_k: keep the k largest logits and what equals the last of them; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches it (Holtzman et al. 2020).
        min_p: keep tokens at least this probable relative to the likeliest.
        typical_p: keep the tokens nearest to the entropy up to this mass (Meister et al. 2023).
        repetition_penalty: divides positive and multiplies negative logits of ids seen before, prompt included.
        presence_penalty: subtracted once from the logit of every generated id.
        frequency_penalty: subtracted from the logit of a generated id for each time it was generated.
        logit_bias: id -> what is added to its logit.
        banned_ids: ids that are never chosen.
        seed: 0 .. 2**64 - 1; None draws a fresh one.

    Raises:
        PromptError: a value out of its range.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_ids: Sequence[int] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _require("typical_p", self.typical_p, 0 < self.typical_p <= 1, "more than 0 and at most 1")
        _require("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0")
        _require("presence_penalty", self.presence_penalty, True, "a finite number")
        _require("frequency_penalty", self.frequency_penalty, True, "a finite number")
        _require_whole("top_k", self.top_k, 2**63)
        if self.seed is not None:
            _require_whole("seed", self.seed, 2**64)
        for token_id, bias in self.logit_bias.items():
            _require_whole("an id of logit_bias", token_id, 2**63)
            _require("a bias of logit_bias", bias, True, "a finite number")
        for token_id in self.banned_ids:
            _require_whole("an id of banned_ids", token_id, 2**63)


def _require(name: str, value: float, holds: bool, wanted: str) -> None:
    if not (math.isfinite(value) and holds):
        raise PromptError(f"{name} is {value!r}; it must be {wanted}.")


def _require_whole(name: str, value: int, end: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise PromptError(f"{name} is {value!r}; it must be a whole number from 0 to {end - 1}.")


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
        """Ids that `sample` would choose from, ascending, and their probabilities. Arguments and errors as there."""
        try:
            return self._core.distribution(logits, previous, prompt_length, allowed)
        except ValueError as error:
            raise BackendError(f"Cannot sample: {error}.") from None

    def log_prob(self, logits: Logits, token_id: int) -> float:
        """Natural logarithm of the probability that the logits [V] give an id, before any of the settings."""
        try:
            return self._core.log_prob(logits, token_id)
        except ValueError as error:
            raise BackendError(f"Cannot compute a log-probability: {error}.") from None

    def top_log_probs(self, logits: Logits, count: int) -> list[tuple[int, float]]:
        """The `count` likeliest ids with their log-probabilities, likeliest first, before any of the settings."""
        try:
            return self._core.top_log_probs(logits, count)
        except ValueError as error:
            raise BackendError(f"Cannot compute log-probabilities: {error}.") from None
