"""Options of an answer and its sampler: the bundle's defaults, overridden call by call, checked where they enter.

The records are typed: a field says which values it takes, `top_k: Annotated[int, whole()]`, and `check_fields`, called
by `__post_init__`, replaces each value by its plain Python form or raises an error that names the option. Arguments
that are no fields go through `check`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

from qwenvl_edge.bundle.manifest import GenerationDefaults
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.families.pieces import PixelLimits
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.machine.urls import show

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class Overrides(TypedDict, total=False):
        """Keyword arguments of the engine's calls: the fields of GenerationOptions and of SamplingParams.

        min_pixels, max_pixels: limits of the call's pictures and clips after resizing. tools, tool_choice: functions
        that the model may call, as families.tools.Tools.read takes them; parallel_tool_calls: an answer may make
        several calls (the default).
        """

        tools: Sequence[Mapping[str, Any]]
        tool_choice: str | Mapping[str, Any]
        parallel_tool_calls: bool

        min_pixels: int | None
        max_pixels: int | None
        max_new_tokens: int
        stop: Sequence[str]
        deadline_ms: float | None
        cancel: CancelToken | None
        constraint: Constraint | None
        lookup: bool
        logprobs: int | None
        min_new_tokens: int
        cache_salt: str
        thinking_budget: int | None
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

    do_sample: Annotated[bool, flag()] = True
    temperature: Annotated[float, number("0 or more", least=0)] = 1.0
    top_k: Annotated[int, whole()] = 0
    top_p: Annotated[float, number("more than 0 and at most 1", above=0, most=1)] = 1.0
    min_p: Annotated[float, number("from 0 to 1", least=0, most=1)] = 0.0
    typical_p: Annotated[float, number("more than 0 and at most 1", above=0, most=1)] = 1.0
    repetition_penalty: Annotated[float, number("more than 0", above=0)] = 1.0
    presence_penalty: Annotated[float, number("a finite number")] = 0.0
    frequency_penalty: Annotated[float, number("a finite number")] = 0.0
    logit_bias: Annotated[
        Mapping[int, float], dict_of("an id of logit_bias", whole(), "a bias of logit_bias", number("a finite number"))
    ] = field(default_factory=dict)
    banned_ids: Annotated[Sequence[int], list_of("an id of banned_ids", whole(), "a list of ids")] = ()
    seed: Annotated[int | None, optional(whole(most=(1 << 64) - 1))] = None

    def __post_init__(self) -> None:
        check_fields(self, PromptError)


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
        thinking_budget: the most tokens of the reasoning before the answer, in models that reason; None sets no limit.

    Raises:
        PromptError: a value out of its range.
    """

    sampling: Annotated[SamplingParams, instance(SamplingParams)]
    max_new_tokens: Annotated[int, whole("a whole number of at least 1", least=1)]
    stop: Annotated[Sequence[str], list_of("a string of stop", text(empty=False), "a list of strings")] = ()
    deadline_ms: Annotated[float | None, optional(number("a number of milliseconds greater than 0", above=0))] = None
    cancel: Annotated[CancelToken | None, optional(instance(CancelToken))] = None
    constraint: Annotated[Constraint | None, optional(instance(Constraint))] = None
    lookup: Annotated[bool, flag()] = True
    logprobs: Annotated[int | None, optional(whole(most=MOST_LOGPROBS))] = None
    min_new_tokens: Annotated[int, whole()] = 0
    cache_salt: Annotated[str, text()] = ""
    thinking_budget: Annotated[int | None, optional(whole())] = None

    def __post_init__(self) -> None:
        check_fields(self, PromptError)
        if self.min_new_tokens and self.constraint is not None:
            raise PromptError("min_new_tokens is given with a constraint, whose form says when the answer ends.")

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


def pixel_limits(min_pixels: Any, max_pixels: Any) -> PixelLimits:
    """Return limits of pictures after resizing, checked. Raises PromptError."""
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return PixelLimits(**{name: check(name, value, _PIXELS, PromptError) for name, value in given.items()})


@dataclass(frozen=True)
class Kind:
    """The values that an option takes. wanted: their description. read: the plain form of a value, or ValueError.

    by_type: a wrong value is described by its type.
    """

    wanted: str
    read: Callable[[Any], Any]
    by_type: bool = False


class _WrongPartError(ValueError):
    """Wrong is a part of the value: its name, itself, and its kind."""


def kind_of(wanted: str, read: Callable[[Any], Any], takes: Callable[[Any], bool], *, by_type: bool = False) -> Kind:
    """Return the kind of the values for which `takes` is true, and whose plain form `read` gives."""

    def checked(value: Any) -> Any:
        if not takes(value):
            raise ValueError
        return read(value)

    return Kind(wanted, checked, by_type)


def whole(wanted: str = "", *, least: int = 0, most: int = (1 << 63) - 1) -> Kind:
    """Whole numbers from `least` to `most`, NumPy's too; True and False are none."""

    def takes(value: Any) -> bool:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most

    return kind_of(wanted or f"a whole number from {least} to {most}", int, takes)


def number(wanted: str, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Kind:
    """Finite numbers of at least `least`, greater than `above`, and at most `most`."""

    def takes(value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        plain = float(value)
        return math.isfinite(plain) and least <= plain <= most and plain > above

    return kind_of(wanted, lambda value: int(value) if isinstance(value, numbers.Integral) else float(value), takes)


def flag() -> Kind:
    """True or False, NumPy's too."""
    return kind_of("True or False", bool, lambda value: type(value).__name__ in ("bool", "bool_"))


def text(wanted: str = "a string", *, empty: bool = True) -> Kind:
    """Strings that UTF-8 can hold. empty: the empty one too."""

    def takes(value: Any) -> bool:
        return isinstance(value, str) and bool(value or empty) and value.encode() is not None

    return kind_of(wanted if empty else f"{wanted} that is not empty", str, takes)


def one_of(*choices: str) -> Kind:
    """One of some strings."""
    return kind_of(
        f"one of {', '.join(map(repr, choices))}", str, lambda value: isinstance(value, str) and value in choices
    )


def instance(*types: type, wanted: str = "") -> Kind:
    """Objects of some types."""
    wanted = wanted or " or ".join(f"a {each.__name__}" for each in types)
    return kind_of(wanted, lambda value: value, lambda value: isinstance(value, types), by_type=True)


def function() -> Kind:
    """Something that can be called."""
    return kind_of("a function", lambda value: value, callable, by_type=True)


def anything() -> Kind:
    """Any value, where something else checks it."""
    return Kind("anything", lambda value: value)


def optional(kind: Kind) -> Kind:
    """The same, or None."""
    return Kind(f"{kind.wanted}, or None", lambda value: None if value is None else kind.read(value), kind.by_type)


def list_of(item: str, kind: Kind, wanted: str) -> Kind:
    """Lists, tuples and other iterables, read into a tuple; a string is none. item: the name of each, for messages."""

    def takes(value: Any) -> bool:
        return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping))

    return kind_of(wanted, lambda value: tuple(_part(item, each, kind) for each in value), takes)


def dict_of(key: str, key_kind: Kind, item: str, item_kind: Kind) -> Kind:
    """Mappings, read into a dict. key, item: the names of each, for messages."""

    def read(value: Any) -> dict[Any, Any]:
        return {_part(key, name, key_kind): _part(item, each, item_kind) for name, each in value.items()}

    return kind_of(f"a dict from {key} to {item}", read, lambda value: isinstance(value, Mapping))


def _part(name: str, value: Any, kind: Kind) -> Any:
    try:
        return kind.read(value)
    except (ValueError, TypeError, OverflowError):
        raise _WrongPartError(name, value, kind) from None


def check(name: str, value: Any, kind: Kind, error: type[QwenVLError] = QwenVLError) -> Any:
    """Return a value in its plain form.

    Raises:
        error: the kind does not take it; the message names the option, the value and the values that it takes.
    """
    try:
        return kind.read(value)
    except (ValueError, TypeError, OverflowError) as problem:
        if isinstance(problem, _WrongPartError):
            name, value, kind = problem.args
        found = f"of type {type(value).__name__}" if kind.by_type else show(value)
        raise error(f"{name} is {found}; it must be {kind.wanted}.") from None


def check_fields(record: Any, error: type[QwenVLError]) -> None:
    """Check each field of a frozen dataclass that is annotated with a Kind, and put its plain form in its place."""
    for name, kind in _kinds(cast("Hashable", type(record))).items():
        object.__setattr__(record, name, check(name, getattr(record, name), kind, error))


@functools.cache
def _kinds(cls: Any) -> dict[str, Kind]:
    hints = get_type_hints(cls, include_extras=True)
    marked = {each.name: getattr(hints[each.name], "__metadata__", ()) for each in dataclasses.fields(cls)}
    return {name: kind for name, marks in marked.items() for kind in marks if isinstance(kind, Kind)}


_PIXELS = optional(whole("a whole number of pixels, at least 1", least=1))
_SAMPLING = frozenset(each.name for each in dataclasses.fields(SamplingParams))
_GENERATION = frozenset(each.name for each in dataclasses.fields(GenerationOptions)) - {"sampling"}
