"""How an answer is generated: the bundle's defaults, overridden call by call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_edge.bundle import GenerationDefaults
from qwenvl_edge.errors import PromptError
from qwenvl_edge.sampling import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class Overrides(TypedDict, total=False):
        """Keyword arguments of the engine's calls that override the bundle's generation defaults."""

        do_sample: bool
        temperature: float
        top_p: float
        top_k: int
        repetition_penalty: float
        seed: int | None
        max_new_tokens: int


@dataclass(frozen=True)
class GenerationOptions:
    """Sampling and length of one answer; seed None draws a fresh one."""

    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_new_tokens: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {self.max_new_tokens!r}; give a whole number of at least 1.")

    @property
    def sampling(self) -> SamplingParams:
        """The part that the sampler needs. Raises what SamplingParams raises for values out of range."""
        return SamplingParams(
            do_sample=self.do_sample,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    @classmethod
    def merge(cls, defaults: GenerationDefaults, overrides: Overrides) -> GenerationOptions:
        """Return the defaults with a call's overrides. Raises TypeError for an unknown one."""
        names = {field.name for field in dataclasses.fields(cls)} - {"seed"}
        return cls(**({name: getattr(defaults, name) for name in names} | dict(overrides)))
