"""POST /v1/responses: OpenAI's Responses protocol, translated into a conversation and back.

input, and the messages of previous_response_id -> a ChatRequest -> a reply -> output items
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.chat import asked_of, read_chat
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.exchange import Asked, validated
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.response_events import ResponseRenderer
from qwenvl_edge.server.response_input import chat_tool, messages_of
from qwenvl_edge.server.schema import LABELS, ChatRequest, JsonObjectFormat, JsonSchema, Reasoning, TextFormat
from qwenvl_edge.server.schema_messages import Record
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.stored import StoredConversations
from qwenvl_edge.server.tools import check_tools
from qwenvl_edge.server.translate import Translator

_SAME_NAME = (
    *(
        "model",
        "stream",
        "temperature",
        "top_p",
        "top_logprobs",
        "top_k",
        "min_p",
        "repetition_penalty",
        "seed",
        "stop",
    ),
    *("presence_penalty", "frequency_penalty", "logit_bias", "boxes", "skip_special_tokens", "cache_salt"),
    *("parallel_tool_calls", "enable_thinking", "thinking_budget", "chat_template_kwargs", "mm_processor_kwargs"),
    *("media_io_kwargs", "thinking_token_budget"),
)
_LABELS = (
    *(name for name in LABELS if name != "store"),
    "background",
    "truncation",
    "max_tool_calls",
    "prompt",
    "conversation",
)


class SchemaFormat(JsonSchema):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]


class TextOptions(Record):
    """The form of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(Record):
    """A request of the Responses protocol; its input becomes the messages of a ChatRequest.

    include: what may be asked for beside the answer; log-probabilities only. verbosity has no effect.
    """

    model: str
    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    reasoning: Reasoning | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream_options: dict[Literal["include_obfuscation"], Literal[False]] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    # These go to the ChatRequest as they are, which checks them.
    stream: Any = None
    temperature: Any = None
    top_p: Any = None
    top_logprobs: Any = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    seed: Any = None
    stop: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    boxes: Any = None
    skip_special_tokens: Any = None
    cache_salt: Any = None
    parallel_tool_calls: Any = None
    enable_thinking: Any = None
    thinking_budget: Any = None
    thinking_token_budget: Any = None
    chat_template_kwargs: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, data: Any) -> Any:
        return {name: each for name, each in data.items() if name not in _LABELS} if isinstance(data, dict) else data


def ask_response(raw: dict[str, Any], salt: str, translator: Translator, stored: StoredConversations) -> Asked:
    """Read a request. stored: conversations that it may continue, and to which it is added. Raises ApiError."""
    given, request, messages = read_response(
        raw, translator.limits, translator.abilities, lambda name: stored.find(name, salt)
    )
    translator.check_model(request.model)
    renderer = ResponseRenderer(translator.form(request), given.model_dump(exclude_none=True))
    asked = asked_of(request, renderer, salt, translator)

    def answered(reply: Reply) -> None:
        stored.keep(renderer.id, salt, [*messages, renderer.message(reply)])

    return asked if given.store is False or _has_files(messages) else dataclasses.replace(asked, answered=answered)


def read_response(
    raw: dict[str, Any],
    limits: ServerLimits,
    abilities: Abilities,
    find: Callable[[str], list[dict[str, Any]]],
) -> tuple[ResponsesRequest, ChatRequest, list[dict[str, Any]]]:
    """Return a request of its JSON, the conversation that it stands for, and that one's messages but the system's.

    find: gives the messages up to an earlier response.

    Raises:
        ApiError: the request is malformed, or continues a conversation that is not stored.
    """
    check_tools(raw, abilities)
    _check_state(raw)
    given: ResponsesRequest = validated(ResponsesRequest, {k: v for k, v in raw.items() if k not in _LABELS})
    chat: dict[str, Any] = {name: value for name in _SAME_NAME if (value := getattr(given, name)) is not None}
    before = find(given.previous_response_id) if given.previous_response_id else []
    messages = messages_of(given.input, limits, abilities)
    # The system's words may stand anywhere; at the end they leave the others their numbers.
    system = [] if given.instructions is None else [{"role": "system", "content": given.instructions}]
    chat["messages"] = [*before, *messages, *system]
    chat["max_completion_tokens"] = given.max_output_tokens
    if "message.output_text.logprobs" in (given.include or ()) or given.top_logprobs:
        chat["logprobs"] = True
    if given.text is not None and given.text.format is not None:
        chat["response_format"] = _format(given.text.format)
    if given.tools:
        chat["tools"] = [chat_tool(tool, f"tools.{number}") for number, tool in enumerate(given.tools)]
    chat["tool_choice"] = _choice(given.tool_choice)
    chat["reasoning"] = None if given.reasoning is None else given.reasoning.model_dump(exclude_none=True)
    try:
        return given, read_chat(chat, limits, abilities), [*before, *messages]
    except ApiError as error:
        raise error.renamed("messages", "input", len(before)) from None


def _choice(given: Any) -> Any:
    """Return a choice as chat completions have it; there a name stands inside of `function`."""
    if isinstance(given, dict) and given.get("type") == "function" and "name" in given:
        return {"type": "function", "function": {"name": given["name"]}}
    if isinstance(given, dict):
        raise refused(
            "tool_choice",
            'is of a kind that is not known; give none, auto, required, or {"type": "function", "name": ...}',
        )
    return given


def _has_files(messages: list[dict[str, Any]]) -> bool:
    """Tell whether parts name files that came with the request, which are not kept."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    places = [part.get(kind, {}) for part in parts for kind in ("image_url", "video_url")]
    return any(str(place.get("url", "")).startswith("attachment:") for place in places if isinstance(place, dict))


def _check_state(raw: dict[str, Any]) -> None:
    if raw.get("conversation") is not None:
        raise refused("conversation", "is not supported; give previous_response_id, or the whole conversation as input")
    if raw.get("background"):
        raise refused("background", "is not supported; wait for the answer, or stream it")
    if raw.get("prompt") is not None:
        raise refused("prompt", "is not supported, because no prompts are stored; send instructions and input")
    if raw.get("truncation") not in (None, "disabled", "auto"):
        raise refused("truncation", "is unknown; give disabled or auto")


def _format(given: TextFormat | JsonObjectFormat | SchemaFormat) -> dict[str, Any]:
    if isinstance(given, SchemaFormat):
        return {"type": "json_schema", "json_schema": {"name": given.name, "schema": given.definition}}
    return given.model_dump(exclude_none=True, by_alias=True)
