"""The messages of a request -> the turns of a conversation, their pictures and clips loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.families.tools import written_calls
from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.clips import ClipSource, Wanted
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.places import Places
from qwenvl_edge.server.schema import ChatRequest
from qwenvl_edge.server.schema_messages import (
    EVERY_FRAME,
    AssistantMessage,
    FramesPart,
    ImagePart,
    Pixels,
    RefusalPart,
    Sampled,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
    VideoPart,
)
from qwenvl_edge.server.settings import ServerSettings
from qwenvl_edge.server.sources import PictureSource, Size
from qwenvl_edge.server.tools import earlier_calls
from qwenvl_edge.server.workers import Workers

Items = list[dict[str, Any]]
Turns = list[tuple[Items | None, str | None]]

_LOW_DETAIL = 512 * 512  # pixels, as OpenAI has it


class Conversations:
    """Reads the messages of requests to a model of a family."""

    def __init__(self, settings: ServerSettings, workers: Workers, family: Family) -> None:
        def seen(size: Size, limits: PixelLimits) -> Size:
            return family.seen_size(family.layout(size, limits))

        self._keep_order = settings.keep_order
        self._most_pictures = settings.limits.pictures
        self._abilities = Abilities.of(family)
        places = Places(settings, workers)
        self._pictures = PictureSource(settings.limits, places, workers, seen)
        self._clips = ClipSource(settings.limits, places, self._pictures, workers, family)

    async def turns(
        self, request: ChatRequest, attachments: Mapping[str, bytes], salt: str
    ) -> tuple[str | None, Turns]:
        """Return the system text, and exchanges of a user's items and the answer; the last one has none.

        Messages in a row become one; what tools gave back is a message of its own.

        Raises:
            ApiError: there is nothing to be answered, or a picture or clip cannot be had.
            QwenVLError: a picture or clip is malformed.
        """
        turns: Turns = []
        after_tool = False
        for number, message in enumerate(request.messages):
            where = f"messages.{number}"
            if isinstance(message, (UserMessage, ToolMessage)):
                is_tool = isinstance(message, ToolMessage)
                if not turns or turns[-1][1] is not None or is_tool != after_tool:
                    turns.append(([], None))
                items, after_tool = turns[-1][0], is_tool
                assert items is not None
                if isinstance(message, ToolMessage):
                    items.append({"tool_result": _text(message.content)})
                else:
                    items.extend(await self._items(message, request, attachments, f"{where}.content", salt))
            elif isinstance(message, AssistantMessage):
                if not turns:
                    turns.append((None, None))  # the assistant speaks first
                asked, answer = turns[-1]
                turns[-1] = asked, _joined(answer or "", _answer(message, where))
                after_tool = False
        if turns and turns[0] == (None, ""):
            del turns[0]
        if not turns or turns[-1][1] is not None:
            raise ApiError(
                400, "the last message is not the user's; end with the message to be answered.", param="messages"
            )
        if not any(item.get("text") != "" for item in turns[-1][0] or ()):
            place = f"messages.{max(n for n, each in enumerate(request.messages) if isinstance(each, UserMessage))}"
            raise refused(f"{place}.content", "is empty; give words, a picture or both")
        said = [_text(each.content) for each in request.messages if isinstance(each, SystemMessage)]
        return "\n".join(said) or None, turns

    async def _items(
        self, message: UserMessage, request: ChatRequest, attachments: Mapping[str, bytes], where: str, salt: str
    ) -> Items:
        if isinstance(message.content, str):
            return [{"text": message.content}]
        items: Items = []
        for number, part in enumerate(message.content):
            place = f"{where}.{number}"
            match part:
                case TextPart():
                    items.append({"text": part.text})
                case ImagePart():
                    items.append(await self._picture(part, request, attachments, f"the picture {place}", salt))
                case VideoPart():
                    wanted = _wanted(part, request)
                    source: str | Sequence[str] = part.video_url.url
                    items.append({"video": await self._clips.load(source, attachments, f"the clip {place}", wanted)})
                case FramesPart():
                    wanted = _wanted(part, request)
                    items.append(
                        {"video": await self._clips.load(part.video, attachments, f"the clip {place}", wanted)}
                    )
        return items if self._keep_order else _pictures_first(items)

    async def _picture(
        self, part: ImagePart, request: ChatRequest, attachments: Mapping[str, bytes], name: str, salt: str
    ) -> dict[str, Any]:
        given = request.mm_processor_kwargs
        low = _LOW_DETAIL if part.image_url.detail == "low" and self._abilities.sizes else None
        limits = _limits(part, given, low)
        picture = await self._pictures.load(part.image_url.url, attachments, name, salt, limits)
        item = {"image": picture, "min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
        return {key: value for key, value in item.items() if value is not None}

    def close(self) -> None:
        """End what was started."""
        self._pictures.close()

    async def pictures(self, urls: Sequence[str], attachments: Mapping[str, bytes], salt: str) -> Items:
        """Return pictures as items of a message. Raises as turns."""
        if len(urls) > self._most_pictures:
            reason = f"the request has {len(urls)} pictures, more than {self._most_pictures}."
            raise ApiError(400, reason, param="images")
        names = (f"the picture images.{number}" for number in range(len(urls)))
        return [
            {"image": await self._pictures.load(url, attachments, name, salt)}
            for url, name in zip(urls, names, strict=True)
        ]


def _limits(part: Pixels, given: Pixels | None, low: int | None = None) -> PixelLimits:
    """Return the limits of a picture: its own, else those of the request; low: of its detail, where none is given."""
    asked = [part] if given is None else [part, given]
    most = next((each.max_pixels for each in asked if each.max_pixels is not None), low)
    least = next((each.min_pixels for each in asked if each.min_pixels is not None), None)
    return NO_LIMITS if least is most is None else PixelLimits(least, most)


def _wanted(part: VideoPart | FramesPart, request: ChatRequest) -> Wanted:
    media = None if request.media_io_kwargs is None else request.media_io_kwargs.video
    given: list[Sampled] = [each for each in (part, request.mm_processor_kwargs, media) if each is not None]

    def first(name: str) -> Any:
        return next((value for each in given if (value := getattr(each, name)) is not None), None)

    counts = [count for count in (first("num_frames"), first("max_frames")) if count not in (None, EVERY_FRAME)]
    return Wanted(
        first("fps"),
        min(counts, default=None),
        _limits(part, request.mm_processor_kwargs),
        every=first("do_sample_frames") is False or first("num_frames") == EVERY_FRAME,
    )


def _pictures_first(items: Items) -> Items:
    """Put pictures and clips before the words if all of them stand after.

    Models are trained so, and many clients send words first. Where pictures stand between words, their order says what
    belongs to what, and stays.
    """
    kinds = ["text" not in item for item in items]
    return sorted(items, key=lambda item: "text" in item) if kinds == sorted(kinds) else items


def _answer(message: AssistantMessage, where: str) -> str:
    kept = message.qwenvl or (message.provider_specific_fields and message.provider_specific_fields.qwenvl)
    if kept and kept.raw_text is not None:
        return kept.raw_text
    calls = written_calls(earlier_calls(message.tool_calls or (), f"{where}.tool_calls"))
    return _joined(_text(message.content or message.refusal or ""), f"\n{calls}" if calls else "")


def _joined(first: str, second: str) -> str:
    """Join two answers in a row; calls stand on lines of their own."""
    return first + second if first else second.removeprefix("\n")


def _text(content: str | Iterable[TextPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
