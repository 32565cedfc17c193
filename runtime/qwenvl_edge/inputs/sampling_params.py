"""Settings of the sampler, checked where they enter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwenvl_edge.errors import PromptError


@dataclass(frozen=True)
class SamplingParams:
    """Choice of the next token; the defaults draw from the model's own distribution.

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
        require_whole("top_k", self.top_k, 2**63)
        if self.seed is not None:
            require_whole("seed", self.seed, 2**64)
        for token_id, bias in self.logit_bias.items():
            require_whole("an id of logit_bias", token_id, 2**63)
            _require("a bias of logit_bias", bias, True, "a finite number")
        for token_id in self.banned_ids:
            require_whole("an id of banned_ids", token_id, 2**63)


def _require(name: str, value: float, holds: bool, wanted: str) -> None:
    if not (math.isfinite(value) and holds):
        raise PromptError(f"{name} is {value!r}; it must be {wanted}.")


def require_whole(name: str, value: int, end: int) -> None:
    """Check a whole number from 0 to end - 1. Raises PromptError, which calls it `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise PromptError(f"{name} is {value!r}; it must be a whole number from 0 to {end - 1}.")
