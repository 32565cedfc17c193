"""Records of the messages of a request, as validated; `messages.py` checks number and kinds of their parts before."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_Url = Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    """A part of a request: unknown fields are refused, null counts as absent, true is no number."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # As a word, which no number is: pydantic takes true for 1.
        words = {name: json.dumps(data[name]) for name in _numbers(cls) if isinstance(data.get(name), bool)}
        return {name: value for name, value in (data | words).items() if value is not None}


@functools.cache
def _numbers(record: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields that hold numbers and no truth values."""
    kinds = {name: _kinds(field.annotation) for name, field in record.model_fields.items()}
    return frozenset(name for name, found in kinds.items() if found & {int, float} and bool not in found)


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of; of a literal, those of its values."""
    if get_origin(annotation) in (dict, list):
        return set()
    inner = get_args(annotation)
    return {annotation if isinstance(annotation, type) else type(annotation)}.union(*map(_kinds, inner))


def _place(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class TextPart(Record):
    """Words."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None


class RefusalPart(Record):
    """Words of an earlier answer that refused."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Record):
    """Place of a picture: a data: URI, attachment:NAME (a part of a multipart request), or an allowed URL.

    detail: "low" limits a picture to 512 x 512 pixels where pictures keep their shape; the others have no effect.
    """

    url: _Url
    detail: Literal["auto", "low", "high", "original"] | None = None


class Pixels(Record):
    """Limits of pixels after resizing, in families whose pictures keep their shape."""

    min_pixels: int | None = Field(None, ge=1, lt=2**31)
    max_pixels: int | None = Field(None, ge=1, lt=2**31)


class ImagePart(Pixels):
    """A picture."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_place)]
    cache_control: dict[str, Any] | None = None


EVERY_FRAME = -1


def _not_none(value: int) -> int:
    if value == 0:
        raise ValueError("give the number of frames, or -1 for every frame")
    return value


class Sampled(Record):
    """The frames that are taken of a video file; of a list of frames fps is their pace.

    num_frames: the most; EVERY_FRAME, as vLLM has it, takes all up to the server's limit. max_frames: the same by the
    name of the published preprocessing. do_sample_frames: false takes all; lists of frames are never sampled.
    """

    fps: float | None = Field(None, gt=0, le=1000)
    num_frames: Annotated[int, Field(ge=EVERY_FRAME, le=1024), AfterValidator(_not_none)] | None = None
    max_frames: int | None = Field(None, ge=1, le=1024)
    do_sample_frames: bool | None = None


class VideoUrl(Record):
    """Place of a video file, as of a picture, or data:video/jpeg;base64 with a frame after each comma."""

    url: _Url


class VideoPart(Pixels, Sampled):
    """A clip in a file."""

    type: Literal["video_url"]
    video_url: Annotated[VideoUrl, BeforeValidator(_place)]


class FramesPart(Pixels, Sampled):
    """A clip as a list of places of its frames; a single place is that of a file."""

    type: Literal["video"]
    video: _Url | Annotated[list[_Url], Field(min_length=1)]


class SystemMessage(Record):
    """The system text."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(Record):
    """Words, pictures and clips, in their order."""

    role: Literal["user"]
    content: str | list[Annotated[TextPart | ImagePart | VideoPart | FramesPart, Field(discriminator="type")]]
    name: str | None = None


class Grounding(BaseModel):
    """The extension field of an earlier answer; raw_text, the answer with its markup, is what is read of it."""

    model_config = ConfigDict(extra="ignore")

    raw_text: str | None = None


class ProviderFields(BaseModel):
    """Fields of an answer that LiteLLM does not know, which it keeps here and sends back."""

    model_config = ConfigDict(extra="ignore")

    qwenvl: Grounding | None = None


class CalledFunction(Record):
    """A tool's name and its arguments, an object as JSON."""

    name: str
    arguments: str = "{}"


class ToolCallRecord(Record):
    """A call of an earlier answer."""

    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Record):
    """An earlier answer; given back with its `qwenvl` field, the model sees the boxes that it wrote.

    reasoning_content, reasoning: are left out of the prompt, as the published templates do.
    """

    role: Literal["assistant"]
    content: str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    refusal: str | None = None
    name: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[ToolCallRecord], Field(max_length=128)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    qwenvl: Grounding | None = None
    provider_specific_fields: ProviderFields | None = None


class ToolMessage(Record):
    """Result of a tool."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str | None = None
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
