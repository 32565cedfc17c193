"""One call, checked and tokenized before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwenvl_edge.bundle.manifest import GenerationDefaults
from qwenvl_edge.constraints.matcher import Matcher, MatcherFactory
from qwenvl_edge.errors import ContextError, PromptError
from qwenvl_edge.families import QwenVL
from qwenvl_edge.inputs.cancel import CancelToken, Control
from qwenvl_edge.inputs.messages import Loader, Message, Part, Region, Text, Turn, parse_history, parse_message
from qwenvl_edge.inputs.options import GenerationOptions
from qwenvl_edge.inputs.prompt import Prompt, PromptBuilder, parts_behind_pictures
from qwenvl_edge.inputs.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwenvl_edge.inputs.options import Overrides

_ANSWER_SHARE = 4  # history may not take the last quarter of the context from an answer that wants it


@dataclass(frozen=True)
class Request:
    """A prompt and what its answer needs: `started` is when the call came (time.perf_counter).

    lead: the prompt's end, whose markup the answer continues. is_chat: whether the answer has a history. matcher:
    follows the answer's constraint.
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
        """What may end the answer early: its own options and `tokens`."""
        own = () if self.options.cancel is None else (self.options.cancel,)
        return Control(*tokens, *own, started=self.started, deadline_ms=self.options.deadline_ms)


class RequestBuilder:
    """Builds requests for one bundle and a context of `max_context` tokens."""

    def __init__(
        self, family: QwenVL, tokenizer: Tokenizer, load: Loader, *, defaults: GenerationDefaults, max_context: int
    ) -> None:
        self._family = family
        self._prompts = PromptBuilder(family, tokenizer)
        self._load = load
        self._defaults = defaults
        self._max_context = max_context
        self._matchers = MatcherFactory(family, tokenizer, (family.turn_end, family.end_of_text))

    @property
    def can_chat(self) -> bool:
        """Whether the model was trained on conversations."""
        return self._family.can_chat(self._defaults.chat_format)

    def chat(
        self,
        message: Message,
        images: Iterable[Any],
        history: Iterable[Any],
        system: str | None,
        overrides: Overrides,
    ) -> Request:
        """Build the request of QwenVLEngine.chat; raises what that does."""
        started = time.perf_counter()
        if not self.can_chat:
            raise PromptError("the bundle holds a base model, which knows no conversations; use complete().")
        options = GenerationOptions.merge(self._defaults, overrides)
        parts = parse_message(message, images, self._load)
        turns = parse_history(history, self._load)
        answer = min(options.max_new_tokens, self._max_context // _ANSWER_SHARE)
        room = self._max_context - self._prompts.question_length(parts) - answer
        prompt = self._prompts.chat(
            parts,
            history=turns,
            system=self._family.default_system if system is None else system,
            window=min(self._defaults.max_window_size, room),
        )
        return Request(self._checked(prompt), options, turns, parts, (), True, started, self._matcher(options))

    def complete(self, message: Message, images: Iterable[Any], overrides: Overrides) -> Request:
        """Build the request of QwenVLEngine.complete; raises what that does."""
        started = time.perf_counter()
        options = GenerationOptions.merge(self._defaults, overrides)
        parts = parse_message(message, images, self._load)
        prompt = self._checked(self._prompts.raw(parts))
        return Request(prompt, options, (), parts, parts_behind_pictures(parts), False, started, self._matcher(options))

    def _matcher(self, options: GenerationOptions) -> Matcher | None:
        return None if options.constraint is None else self._matchers.start(options.constraint)

    def _checked(self, prompt: Prompt) -> Prompt:
        excess = len(prompt.ids) - self._max_context
        if excess > 0:
            raise ContextError(
                f"the prompt has {len(prompt.ids):,} tokens, {excess:,} more than the context of {self._max_context:,} "
                "holds; shorten it, give fewer pictures or open the engine with a larger max_context."
            )
        return prompt
