"""Requests: a call, checked and tokenized before anything is computed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from qwenvl_edge.bundle.manifest import GenerationDefaults
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.constraints.matcher import Matcher, MatcherFactory
from qwenvl_edge.errors import ContextError, PromptError
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.families.tools import AUTO, NONE, Tools
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.inputs.clips import Videos, video_list
from qwenvl_edge.inputs.options import GenerationOptions, anything, check, flag, list_of, pixel_limits
from qwenvl_edge.inputs.parts import Part, Region, Text, parts_after_pictures
from qwenvl_edge.inputs.prompt import (
    Loader,
    Message,
    Prompt,
    PromptBuilder,
    Turn,
    check_text,
    over,
    parse_history,
    parse_message,
)
from qwenvl_edge.inputs.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwenvl_edge.inputs.options import Overrides

_ANSWER_SHARE = 4  # history may not take the last quarter of the context from an answer that wants it


Interruption: TypeAlias = Literal["cancelled", "deadline"]


class Control:
    """Watches an answer's cancel tokens and its deadline, `deadline_ms` after `started` (of time.perf_counter)."""

    def __init__(self, *tokens: CancelToken, started: float, deadline_ms: float | None = None) -> None:
        self._tokens = tokens
        self._deadline = None if deadline_ms is None else started + deadline_ms / 1e3
        self._reason: Interruption | None = None

    @property
    def reason(self) -> Interruption | None:
        """The reason to end the answer now, or None; the first reason stays."""
        if self._reason is None:
            if any(token.cancelled for token in self._tokens):
                self._reason = "cancelled"
            elif self._deadline is not None and time.perf_counter() >= self._deadline:
                self._reason = "deadline"
        return self._reason


@dataclass(frozen=True)
class Request:
    """A prompt with all that its answer needs.

    lead: the prompt's end, whose markup the answer continues. is_chat: True if the answer has a history. started: the
    time of the call (time.perf_counter). matcher: follows the answer's constraint.
    """

    prompt: Prompt
    options: GenerationOptions
    history: tuple[Turn, ...]
    message: tuple[Part, ...]
    lead: tuple[Text | Region, ...]
    is_chat: bool
    started: float
    matcher: Matcher | None

    def control(self, *tokens: CancelToken) -> Control:
        """Return the control that ends the answer early: by its own options or by `tokens`."""
        own = () if self.options.cancel is None else (self.options.cancel,)
        return Control(*tokens, *own, started=self.started, deadline_ms=self.options.deadline_ms)


class RequestBuilder:
    """Builds requests for one bundle and a context of `max_context` tokens.

    limits: those of pictures and clips that have none of their own. numbered: as in PromptBuilder.
    """

    def __init__(
        self,
        family: Family,
        tokenizer: Tokenizer,
        load: Loader,
        *,
        defaults: GenerationDefaults,
        max_context: int,
        limits: PixelLimits = NO_LIMITS,
        numbered: bool = False,
    ) -> None:
        self._family = family
        self._prompts = PromptBuilder(family, tokenizer, numbered=numbered)
        self._limits = limits
        self._load = load
        self._defaults = defaults
        self._max_context = max_context
        self._matchers = MatcherFactory(family, tokenizer)

    @property
    def can_chat(self) -> bool:
        """True if the model was trained on conversations."""
        return self._family.can_chat(self._defaults.chat_format)

    def chat(
        self,
        message: Message,
        images: Iterable[Any],
        history: Iterable[Any] | None,
        system: str | None,
        overrides: Overrides,
        video: Videos = None,
    ) -> Request:
        """Build the request of QwenVLEngine.chat. Raises its errors."""
        started = time.perf_counter()
        self._check_chat()
        limits, options, tools = self._options(overrides)
        parts, turns = self._parse(message, images, video, limits), self._history(history)
        prompt = self._chat_prompt(parts, turns, system, options.max_new_tokens, self._max_context, tools)
        prompt = self._checked(prompt, options)
        return Request(prompt, options, turns, parts, (), True, started, self._matcher(options))

    def count(
        self,
        message: Message,
        images: Iterable[Any],
        history: Iterable[Any] | None,
        system: str | None,
        video: Videos = None,
        limits: PixelLimits = NO_LIMITS,
    ) -> int:
        """Return the tokens of the prompt of QwenVLEngine.chat, also of one that does not fit. Raises its errors."""
        self._check_chat()
        parts = self._parse(message, images, video, over(limits, self._limits))
        prompt = self._chat_prompt(parts, self._history(history), system, self._defaults.max_new_tokens)
        return len(prompt.ids)

    def complete(self, message: Message, images: Iterable[Any], overrides: Overrides, video: Videos = None) -> Request:
        """Build the request of QwenVLEngine.complete. Raises its errors."""
        started = time.perf_counter()
        limits, options, tools = self._options(overrides)
        if tools:
            raise PromptError("tools belong to a conversation; use chat().")
        parts = self._parse(message, images, video, limits)
        prompt = self._checked(self._prompts.raw(parts, self._max_context), options)
        return Request(prompt, options, (), parts, parts_after_pictures(parts), False, started, self._matcher(options))

    def _options(self, overrides: Overrides) -> tuple[PixelLimits, GenerationOptions, list[str]]:
        """Divide a call's overrides into those of its pictures and of its answer, and descriptions of tools."""
        rest: dict[str, Any] = dict(overrides)
        limits = pixel_limits(*(rest.pop(name, None) for name in ("min_pixels", "max_pixels")))
        tools, choice = rest.pop("tools", None), rest.pop("tool_choice", AUTO)
        parallel = check("parallel_tool_calls", rest.pop("parallel_tool_calls", True), flag(), PromptError)
        lines = self._offer(Tools.read(tools, choice, parallel=parallel), rest) if tools else []
        return over(limits, self._limits), GenerationOptions.merge(self._defaults, cast("Overrides", rest)), lines

    def _offer(self, tools: Tools, options: dict[str, Any]) -> list[str]:
        """Hold an answer's options to tools; return their descriptions. Raises PromptError: there is a constraint."""
        if options.get("constraint") is not None:
            raise PromptError("tools and a constraint are two forms of one answer; give one of them.")
        if tools.choice == NONE:
            banned = check(
                "banned_ids", options.get("banned_ids", ()), list_of("an id", anything(), "a list"), PromptError
            )
            options["banned_ids"] = [*banned, *tools.call_ids(self._family.special_tokens)]
        else:
            options["constraint"] = Constraint.tool_calls(tools)
        return tools.lines()

    def _check_chat(self) -> None:
        if not self.can_chat:
            raise PromptError("the bundle holds a base model, which knows no conversations; use complete().")

    def _parse(self, message: Message, images: Iterable[Any], video: Videos, limits: PixelLimits) -> tuple[Part, ...]:
        return parse_message(
            message, images, self._load, videos=() if video is None else video_list(video), limits=limits
        )

    def _history(self, history: Iterable[Any] | None) -> tuple[Turn, ...]:
        return parse_history(history, self._load, self._limits)

    def _chat_prompt(
        self,
        parts: Sequence[Part],
        turns: Sequence[Turn],
        system: str | None,
        max_new_tokens: int,
        longest: int | None = None,
        tools: Sequence[str] = (),
    ) -> Prompt:
        return self._prompts.chat(
            parts,
            history=turns,
            system=self._family.default_system if system is None else check_text(system, "system"),
            tools=tools,
            window=self._defaults.max_window_size,
            limit=self._max_context - min(max_new_tokens, self._max_context // _ANSWER_SHARE),
            longest=longest,
        )

    def _matcher(self, options: GenerationOptions) -> Matcher | None:
        return None if options.constraint is None else self._matchers.start(options.constraint)

    def _checked(self, prompt: Prompt, options: GenerationOptions) -> Prompt:
        excess = len(prompt.ids) - self._max_context
        if excess > 0:
            raise ContextError(
                f"the prompt has {len(prompt.ids):,} tokens, {excess:,} more than the context of {self._max_context:,} "
                "holds; shorten it, give fewer pictures or open the engine with a larger max_context.",
                limit=self._max_context,
                tokens=len(prompt.ids),
            )
        return dataclasses.replace(prompt, salt=options.cache_salt) if options.cache_salt else prompt
