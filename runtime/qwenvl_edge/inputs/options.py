"""How an answer is generated: the bundle's defaults, overridden call by call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenvl_edge.bundle.manifest import GenerationDefaults
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.decoding.sampler import SamplingParams
from qwenvl_edge.errors import PromptError
from qwenvl_edge.inputs.cancel import CancelToken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import TypedDict

    class Overrides(TypedDict, total=False):
        """Keyword arguments of the engine's calls: the fields of GenerationOptions and of SamplingParams."""

        max_new_tokens: int
        stop: Sequence[str]
        deadline_ms: float | None
        cancel: CancelToken | None
        constraint: Constraint | None
        lookup: bool
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


@dataclass(frozen=True)
class GenerationOptions:
    """How one answer is generated and what ends it.

    Attributes:
        sampling: how tokens are chosen.
        max_new_tokens: the most tokens it may have.
        stop: strings that end it and are no part of it, looked for in the text with its markup.
        deadline_ms: milliseconds from the call after which it ends with what was said so far.
        cancel: ends it from elsewhere.
        constraint: a form that it keeps to.
        lookup: guess tokens from what was said already and compute several at once; changes the speed only.

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

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
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


_SAMPLING = frozenset(field.name for field in dataclasses.fields(SamplingParams))
_GENERATION = frozenset(field.name for field in dataclasses.fields(GenerationOptions)) - {"sampling"}
