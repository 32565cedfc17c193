"""A validated request -> the arguments of Batcher.submit."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.constraints.ending import Seek
from qwenvl_edge.families import open_family
from qwenvl_edge.families.tools import NONE
from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.conversation import Conversations, Items
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.forms import check_size, given_form, made
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.reasoning import thinking_budget
from qwenvl_edge.server.render import Form
from qwenvl_edge.server.schema import ChatRequest, Sampling
from qwenvl_edge.server.settings import ServerSettings
from qwenvl_edge.server.tools import read_tools
from qwenvl_edge.server.trials import Trials
from qwenvl_edge.server.workers import Workers

_SAME_NAME = (
    *("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    "stop",
)


class Translator:
    """Checks requests against the server's limits and loads their pictures."""

    def __init__(self, settings: ServerSettings, manifest: Manifest, workers: Workers) -> None:
        self._settings = settings
        self.limits = settings.limits
        self._vocab_size = manifest.model.vocab_size
        self._default_tokens = min(manifest.generation.max_new_tokens, settings.limits.tokens)
        family = open_family(manifest)
        self._can_chat = family.can_chat(manifest.generation.chat_format)
        self._workers = workers
        self._trials = Trials()
        self._conversations = Conversations(settings, workers, family)
        self.abilities = Abilities.of(family)

    def seek_by(self, loop: asyncio.AbstractEventLoop) -> Seek:
        """Return what finds the ends of forms in processes that `loop` watches; for other threads."""
        return functools.partial(self._trials.seek, loop=loop)

    async def close(self) -> None:
        """End what was started."""
        await self._trials.close()
        self._conversations.close()

    def check_model(self, model: str) -> None:
        """Check the model's name. Raises ApiError."""
        name = self._settings.model_name
        if model != name:
            raise ApiError(
                404, f"the model is unknown; this server has {name!r}.", param="model", code="model_not_found"
            )

    async def chat(self, request: ChatRequest, attachments: Mapping[str, bytes], salt: str) -> dict[str, Any]:
        """Return the keyword arguments of Batcher.submit.

        Args:
            request: its messages were checked.
            attachments: files sent along, by name.
            salt: that of the client's key.

        Raises:
            ApiError: the request is beyond a limit, or asks for something that is not there.
            QwenVLError: a picture or a form is malformed.
        """
        if not self._can_chat:
            raise ApiError(
                400,
                "the bundle holds a base model, which knows no conversations; send a prompt to POST /v1/completions.",
                param="model",
            )
        options = await self.options(request, salt)
        options |= await self._tools(request, beside="constraint" in options)
        budget = thinking_budget(request, self.abilities, options["max_new_tokens"])
        if budget is not None:
            options["thinking_budget"] = budget
        system, turns = await self._conversations.turns(request, attachments, options["cache_salt"])
        message, _ = turns.pop()
        return {"message": message, "history": turns, "system": system, **options}

    async def options(self, request: Sampling, salt: str) -> dict[str, Any]:
        """Return the options of an answer as the engine names them. Raises as chat."""
        wanted = getattr(request, "max_completion_tokens", None) or request.max_tokens or self._default_tokens
        options: dict[str, Any] = {"max_new_tokens": min(wanted, self.limits.tokens)}
        if request.temperature is not None:
            options |= {"do_sample": request.temperature > 0, "temperature": request.temperature}
        options |= {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
        if request.seed is not None:
            options["seed"] = request.seed % 2**64
        if request.logit_bias:
            options["logit_bias"] = self._bias(request.logit_bias)
        if isinstance(request, ChatRequest):
            options |= _logprobs(request)
        options |= _least(request, options["max_new_tokens"])
        options["cache_salt"] = f"{salt} {request.cache_salt}" if request.cache_salt else salt
        if (given := given_form(request)) is not None:
            where = given[0]
            form = await self._workers.parse(made, *given)
            await self._trials.check(form, where)
            options["constraint"] = form
        return options

    async def pictures(self, urls: Sequence[str], attachments: Mapping[str, bytes], salt: str) -> Items:
        """Return pictures as items of a message. Raises as chat."""
        return await self._conversations.pictures(urls, attachments, salt)

    async def _tools(self, request: ChatRequest, *, beside: bool) -> dict[str, Any]:
        """Return a request's tools as the engine takes them; beside: it asks for a form, too."""
        if not self.abilities.tools:
            return {}
        tools = read_tools(request.tools, request.tool_choice, parallel=request.parallel_tool_calls)
        if tools is None or (beside and tools.choice == NONE):
            return {}
        if beside:
            raise refused("tools", 'and a form are two forms of one answer; send one, or "tool_choice": "none"')
        if tools.choice != NONE:
            form = await self._workers.parse(Constraint.tool_calls, tools)
            check_size("tools", form)
            await self._trials.check(form, "tools")
        given = {"tools": list(tools.descriptions), "tool_choice": tools.choice}
        return {**given, "parallel_tool_calls": tools.parallel}

    def form(self, request: Sampling) -> Form:
        """Return the way in which the answer is written."""
        raw = request.skip_special_tokens is False
        return Form(
            self._settings.model_name,
            text="pixels" if request.boxes == "text" else "raw" if raw else "clean",
            tell_cached=self._settings.tell_cached,
            include_usage=request.stream_options is not None and request.stream_options.include_usage,
        )

    def _bias(self, given: Mapping[str, float]) -> dict[int, float]:
        bias = {int(id_): value for id_, value in given.items()}
        if max(bias) >= self._vocab_size:
            raise ApiError(400, f"logit_bias names ids beyond {self._vocab_size - 1}.", param="logit_bias")
        return bias


def _logprobs(request: ChatRequest) -> dict[str, Any]:
    if request.logprobs:
        return {"logprobs": request.top_logprobs or 0}
    if request.top_logprobs is not None:
        raise ApiError(400, "top_logprobs is given without logprobs; send logprobs: true.", param="top_logprobs")
    return {}


def _least(request: Sampling, most: int) -> dict[str, Any]:
    """Return the least length of an answer, if one is asked for."""
    least = most if request.ignore_eos else request.min_tokens or 0
    if least > most:
        raise ApiError(400, f"min_tokens is {least}, but the answer has {most} tokens at most.", param="min_tokens")
    if least and request.stop and not request.ignore_eos:
        raise ApiError(400, "min_tokens and stop are given, which can contradict each other.", param="min_tokens")
    return {"min_new_tokens": least} if least else {}
