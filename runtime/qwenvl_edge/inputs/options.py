"""Options of an answer and its sampler: the bundle's defaults, overridden call by call, checked where they enter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenvl_edge.bundle.manifest import GenerationDefaults
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.errors import PromptError
from qwenvl_edge.inputs.cancel import CancelToken

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class Overrides(TypedDict, total=False):
        """Keyword arguments of the engine's calls: the fields of GenerationOptions and of SamplingParams."""

        max_new_tokens: int
        stop: Sequence[str]
        deadline_ms: float | None
        cancel: CancelToken | None
        constraint: Constraint | None
        lookup: bool
        logprobs: int | None
        min_new_tokens: int
        cache_salt: str
        do_sample: bool
        temperature: float
        top_k: int
        top_p: float
        min_p: float
        typical_p: float
        repetition_penalty: float
        presence_penalty: float
        frequency_penalty: float
        logit_bias: Mapping[int, float]
        banned_ids: Sequence[int]
        seed: int | None


MOST_LOGPROBS = 20
"""The most alternatives that are given with a token's log-probability, as in OpenAI's API."""


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


@dataclass(frozen=True)
class GenerationOptions:
    """The way in which one answer is generated, and its ends.

    Attributes:
        sampling: the choice of tokens.
        max_new_tokens: the most tokens it may have.
        stop: strings that end it and are no part of it, looked for in the text with its markup.
        deadline_ms: milliseconds from the call after which it ends with the text so far.
        cancel: ends it from another thread.
        constraint: a form that it keeps to.
        lookup: guess tokens from earlier text and compute several at once; changes the speed only.
        logprobs: give the log-probability of each token, with this many of the likeliest tokens at its place (0 to 20),
            in `Reply.logprobs`; None gives none.
        min_new_tokens: no token that ends the answer is chosen before it has so many; not together with a constraint.
        cache_salt: what is computed for the answer is used again only for answers with the same salt, so that nobody
            learns from the time of an answer what others asked.

    Raises:
        PromptError: a value out of its range.
    """

    sampling: SamplingParams
    max_new_tokens: int
    stop: Sequence[str] = ()
    deadline_ms: float | None = None
    cancel: CancelToken | None = None
    constraint: Constraint | None = None
    lookup: bool = True
    logprobs: int | None = None
    min_new_tokens: int = 0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        limit, deadline = self.max_new_tokens, self.deadline_ms
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise PromptError(f"max_new_tokens is {limit!r}; give a whole number of at least 1.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise PromptError(f"stop is {self.stop!r}; give a list of strings that are not empty.")
        if deadline is not None and not (isinstance(deadline, (int, float)) and deadline > 0):
            raise PromptError(f"deadline_ms is {deadline!r}; give a number of milliseconds greater than 0.")
        if self.cancel is not None and not isinstance(self.cancel, CancelToken):
            raise PromptError(f"cancel is of type {type(self.cancel).__name__}; give a CancelToken.")
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise PromptError(f"constraint is of type {type(self.constraint).__name__}; give a Constraint.")
        if self.logprobs is not None:
            require_whole("logprobs", self.logprobs, MOST_LOGPROBS + 1)
        require_whole("min_new_tokens", self.min_new_tokens, 2**63)
        if self.min_new_tokens and self.constraint is not None:
            raise PromptError("min_new_tokens is given with a constraint, whose form says when the answer ends.")
        if not isinstance(self.cache_salt, str):
            raise PromptError(f"cache_salt is of type {type(self.cache_salt).__name__}; give a string.")

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is always taken."""
        return not self.sampling.do_sample or self.sampling.temperature == 0

    @classmethod
    def merge(cls, defaults: GenerationDefaults, overrides: Overrides) -> GenerationOptions:
        """Return the defaults with a call's overrides.

        Raises:
            PromptError: an override is unknown or out of range.
        """
        values: dict[str, Any] = {**vars(defaults), **overrides}
        if unknown := sorted(set(overrides) - _SAMPLING - _GENERATION):
            known = ", ".join(sorted(_SAMPLING | _GENERATION))
            raise PromptError(f"unknown option {', '.join(unknown)}; there are {known}.")
        sampling = SamplingParams(**{name: value for name, value in values.items() if name in _SAMPLING})
        return cls(sampling, **{name: value for name, value in values.items() if name in _GENERATION})


def _require(name: str, value: float, holds: bool, wanted: str) -> None:
    if not (math.isfinite(value) and holds):
        raise PromptError(f"{name} is {value!r}; it must be {wanted}.")


def require_whole(name: str, value: int, end: int) -> None:
    """Check a whole number from 0 to end - 1. Raises PromptError, which calls it `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise PromptError(f"{name} is {value!r}; it must be a whole number from 0 to {end - 1}.")


_SAMPLING = frozenset(each.name for each in dataclasses.fields(SamplingParams))
_GENERATION = frozenset(each.name for each in dataclasses.fields(GenerationOptions)) - {"sampling"}
