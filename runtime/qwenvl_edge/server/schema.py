"""Requests of POST /v1/chat/completions: OpenAI's fields, and those of other servers that clients know.

A field is obeyed or refused, at every depth. Those that only label a request (LABELS) are taken and do nothing; null is
the same as leaving a field out. Messages are checked by `messages.py` first, whose sentences name message and part.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from qwenvl_edge.inputs.options import MOST_LOGPROBS
from qwenvl_edge.server.schema_messages import Message, Pixels, Record, Sampled

_Penalty = Annotated[float, Field(ge=-2, le=2)]
_StopText = Annotated[str, Field(min_length=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
_Json = Annotated[dict[str, Any], Field(description="a JSON Schema")]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_tokens(value: Any) -> Any:
    return 0 if value == -1 and not isinstance(value, bool) else value  # vLLM's word for "all"


class TextFormat(Record):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Record):
    """Any JSON object, or as llama.cpp has it, one that a schema accepts."""

    type: Literal["json_object"]
    definition: _Json | None = Field(None, alias="schema")


class JsonSchema(Record):
    """A JSON Schema and its name. strict: it is always kept to."""

    name: str = ""
    description: str | None = None
    definition: _Json = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Record):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Record):
    """vLLM's form of an answer; one of these."""

    json_: _Json | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None
    grammar: str | None = None


class StreamOptions(Record):
    """Options of a stream; include_usage ends it with the token counts.

    continuous_usage_stats: has no effect; the counts come at the end.
    """

    include_usage: bool = False
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TemplateOptions(Record):
    """Options of the chat template, as vLLM's clients name them. thinking: the same as enable_thinking."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    thinking_budget: int | None = Field(None, ge=0)


class Reasoning(Record):
    """Reasoning before the answer: an effort, or the most tokens. summary: has no effect, there is none."""

    effort: Effort | None = None
    max_tokens: int | None = Field(None, ge=0)
    enabled: bool | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ProcessorOptions(Pixels, Sampled):
    """vLLM's options of all pictures and clips of a request that have none of their own."""


class MediaOptions(Record):
    """vLLM's options of how clips are read."""

    video: Sampled | None = None


class Sampling(Record):
    """The options of an answer that all routes share."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_no_tokens)] | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[_StopText], Field(max_length=4), BeforeValidator(_listed)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]{1,7}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        Field(None, max_length=1024)
    )
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    boxes: Literal["field", "text"] | None = None
    cache_salt: str | None = Field(None, max_length=1024)
    n: Literal[1] | None = None
    # Forms by the names of vLLM, and llama.cpp's.
    guided_json: _Json | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: _Json | None = None
    grammar: str | None = None
    guided_grammar: str | None = None


LABELS = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "request_id",
)
"""Fields that change no answer: they label a request, or are about things that it does not have."""


NEUTRAL = {
    **{"best_of": 1, "use_beam_search": False, "early_stopping": False, "length_penalty": 1, "priority": 0},
    **{"echo": False, "detokenize": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False},
    **{"add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False},
    **{"stop_token_ids": [], "bad_words": [], "documents": [], "return_token_ids": False},
}
"""Fields of vLLM that this server does not have, with the value that means what it does anyway."""


def without_labels(data: Any) -> Any:
    """Return a request without the fields that change nothing."""
    if not isinstance(data, dict):
        return data
    return {name: each for name, each in data.items() if name not in LABELS and not _is_neutral(name, each)}


def _is_neutral(name: str, value: Any) -> bool:
    neutral = NEUTRAL.get(name)
    return neutral is not None and value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


class ChatRequest(Sampling):
    """A conversation to be continued."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Literal["none", "auto"] | None = None
    # Reasoning before the answer, by the names of OpenAI, vLLM, OpenRouter and others.
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = Field(None, ge=0)
    thinking_token_budget: int | None = Field(None, ge=0)
    chat_template_kwargs: TemplateOptions | None = None
    # Pictures and clips.
    mm_processor_kwargs: ProcessorOptions | None = None
    media_io_kwargs: MediaOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, data: Any) -> Any:
        return without_labels(data)
