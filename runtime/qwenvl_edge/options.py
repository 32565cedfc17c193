"""How an answer is generated: the bundle's defaults, overridden call by call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenvl_edge.bundle import GenerationDefaults
from qwenvl_edge.errors import PromptError
from qwenvl_edge.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import TypedDict

    class Overrides(TypedDict, total=False):
        """Keyword arguments of the engine's calls: `max_new_tokens` and the fields of SamplingParams."""

        max_new_tokens: int
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


_SAMPLING = frozenset(field.name for field in dataclasses.fields(SamplingParams))


@dataclass(frozen=True)
class GenerationOptions:
    """Sampling of one answer and the most tokens it may have."""

    sampling: SamplingParams
    max_new_tokens: int

    @classmethod
    def merge(cls, defaults: GenerationDefaults, overrides: Overrides) -> GenerationOptions:
        """Return the defaults with a call's overrides.

        Raises:
            PromptError: an override is unknown or out of range.
        """
        values: dict[str, Any] = {**dataclasses.asdict(defaults), **overrides}
        if unknown := sorted(set(overrides) - _SAMPLING - {"max_new_tokens"}):
            raise PromptError(
                f"unknown option {', '.join(unknown)}; there are max_new_tokens, {', '.join(sorted(_SAMPLING))}."
            )
        limit = values["max_new_tokens"]
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise PromptError(f"max_new_tokens is {limit!r}; give a whole number of at least 1.")
        return cls(SamplingParams(**{name: value for name, value in values.items() if name in _SAMPLING}), limit)
