"""POST /v1/responses: OpenAI's Responses protocol, translated into a conversation and back. Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qwenvl_edge.server.chat import read_chat, spoken
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.exchange import validated
from qwenvl_edge.server.messages import kind_of, refused, shortened
from qwenvl_edge.server.response_events import ResponseRenderer
from qwenvl_edge.server.schema import LABELS, ChatRequest, JsonObjectFormat, JsonSchema, Record, TextFormat
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.tools import check_tools, no_tools
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
)
_LABELS = (*LABELS, "background", "truncation", "max_tool_calls", "prompt", "conversation")
_TOOL_ITEMS = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")
_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


class SchemaFormat(JsonSchema):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]


class TextOptions(Record):
    """The form of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(Record):
    """A request of the Responses protocol; its input becomes the messages of a ChatRequest.

    include: what may be asked for beside the answer; log-probabilities only. verbosity and reasoning have no effect.
    """

    model: str
    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    reasoning: dict[Literal["effort", "summary", "generate_summary"], str | None] | None = None
    stream_options: dict[Literal["include_obfuscation"], Literal[False]] | None = None
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, data: Any) -> Any:
        return {name: each for name, each in data.items() if name not in LABELS} if isinstance(data, dict) else data


@dataclass(frozen=True)
class AskedResponse:
    """A conversation to be continued. See exchange.Asked."""

    given: ResponsesRequest
    options: ChatRequest
    translator: Translator

    @property
    def streams_text(self) -> bool:
        """See Asked."""
        return self.translator.form(self.options).text == "clean"

    def words(self) -> Any:
        """See Asked."""
        return spoken(self.options)

    async def arguments(self, attachments: Mapping[str, bytes], salt: str) -> dict[str, Any]:
        """See Asked."""
        self.translator.check_model(self.options.model)
        return await self.translator.chat(self.options, attachments, salt)

    def renderer(self) -> ResponseRenderer:
        """See Asked."""
        return ResponseRenderer(self.translator.form(self.options), self.given.model_dump(exclude_none=True))


def read_response(raw: dict[str, Any], limits: ServerLimits) -> tuple[ResponsesRequest, ChatRequest]:
    """Return a request of its JSON, and the conversation that it stands for. Raises ApiError."""
    check_tools(raw)
    _check_state(raw)
    given: ResponsesRequest = validated(ResponsesRequest, {k: v for k, v in raw.items() if k not in _LABELS})
    chat: dict[str, Any] = {name: value for name in _SAME_NAME if (value := getattr(given, name)) is not None}
    chat["messages"] = _messages(given, limits)
    chat["max_completion_tokens"] = given.max_output_tokens
    if "message.output_text.logprobs" in (given.include or ()) or given.top_logprobs:
        chat["logprobs"] = True
    if given.text is not None and given.text.format is not None:
        chat["response_format"] = _format(given.text.format)
    try:
        return given, read_chat(chat, limits)
    except ApiError as error:
        raise error.renamed("messages", "input") from None


def _check_state(raw: dict[str, Any]) -> None:
    for name in ("previous_response_id", "conversation"):
        if raw.get(name) is not None:
            raise refused(
                name, "is not supported, because answers are not stored; send the whole conversation as input"
            )
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


def _messages(given: ResponsesRequest, limits: ServerLimits) -> list[dict[str, Any]]:
    # The system's words may stand anywhere; at the end they leave the others their numbers.
    system = [] if given.instructions is None else [{"role": "system", "content": given.instructions}]
    if isinstance(given.input, str):
        return [{"role": "user", "content": given.input}, *system]
    if len(given.input) >= limits.messages:
        raise refused("input", f"has {len(given.input)} items, more than {limits.messages - 1}")
    return [*(_message(item, f"input.{number}") for number, item in enumerate(given.input)), *system]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise refused(where, f"is {kind_of(item)}; send a message with role and content")
    kind = item.get("type") or "message"
    if kind in _TOOL_ITEMS:
        raise no_tools(where, "leave tool calls and their results out of the input")
    if kind != "message":
        raise refused(where, f"is an item of type {shortened(kind)}, which this server does not know; send messages")
    if unknown := sorted(item.keys() - {"type", "role", "content", "id", "status", "phase", "qwenvl"}):
        raise refused(f"{where}.{unknown[0]}", "is a field that this server does not know; leave it out")
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part, f"{where}.content.{number}") for number, part in enumerate(content)]
    message = {"role": item.get("role"), "content": content}
    return {**message, "qwenvl": item["qwenvl"]} if item.get("qwenvl") else message


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_image":
        url = part.get("image_url")
        if part.get("file_id") is not None or not isinstance(url, str):
            raise refused(where, "is an input_image without image_url; send it as a data: URI, no files are stored")
        return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail")}}
    if isinstance(kind, str) and kind in _PARTS:
        name = _PARTS[kind]
        return {"type": name, name: part.get(name)}
    if not isinstance(part, dict):
        raise refused(where, f"is {kind_of(part)}; send an object with a type")
    raise ApiError(
        400,
        f"{where} is a part of type {shortened(kind)}, which is not taken; send input_text or input_image.",
        param=where,
    )
