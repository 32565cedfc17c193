"""Requests of POST /v1/chat/completions: the part of OpenAI's schema that is understood.

Fields that only label a request (user, metadata, store) are taken and ignored; fields that would change the answer and
are not supported (tools, several choices, audio) are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwenvl_edge.inputs.options import MOST_LOGPROBS

_Penalty = Annotated[float, Field(ge=-2, le=2)]
_StopText = Annotated[str, Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class TextPart(_Record):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Record):
    """Place of a picture: a data: URI, attachment:NAME (a part of a multipart request), or an allowed URL."""

    url: str = Field(min_length=1)
    detail: str | None = None


class ImagePart(_Record):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class SystemMessage(_Record):
    """The system text."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(_Record):
    """Words and pictures, in their order."""

    role: Literal["user"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class Grounding(_Record):
    """The extension field of an earlier answer; raw_text is the answer with its markup."""

    raw_text: str | None = None


class AssistantMessage(_Record):
    """An earlier answer; given back with its `qwenvl` field, the model sees the boxes that it wrote."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    qwenvl: Grounding | None = None


class TextFormat(_Record):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(_Record):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(_Record):
    """A JSON Schema and its name."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str = ""
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(_Record):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(_Record):
    """Options of a stream; include_usage ends it with the token counts."""

    include_usage: bool = False


class ChatRequest(_Record):
    """A conversation to be continued."""

    model: str
    messages: list[Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]] = Field(
        min_length=1
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: _StopText | Annotated[list[_StopText], Field(max_length=4)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]{1,7}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        None
    )
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    n: Literal[1] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
