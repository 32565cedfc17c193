"""A ChatRequest -> the arguments of Batcher.submit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qwenvl_edge.bundle.manifest import ModelInfo
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.schema import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    SystemMessage,
    TextPart,
    UserMessage,
)
from qwenvl_edge.server.settings import Settings
from qwenvl_edge.server.sources import PictureSource

Items = list[dict[str, Any]]


class Translator:
    """Checks requests against the server's limits and loads their pictures."""

    def __init__(self, settings: Settings, model: ModelInfo, *, default_tokens: int) -> None:
        self._settings = settings
        self._vocab_size = model.vocab_size
        self._default_tokens = min(default_tokens, settings.limits.tokens)
        self._pictures = PictureSource(settings)

    def arguments(self, request: ChatRequest, attachments: Mapping[str, bytes]) -> dict[str, Any]:
        """Keyword arguments for Batcher.submit; decodes pictures, so call it off the event loop.

        Raises:
            ApiError: the request is beyond a limit, or asks for something that is not there.
            QwenVLError: a picture or a schema is malformed.
        """
        name = self._settings.model_name
        if request.model != name:
            raise ApiError(
                404, f"the model is unknown; this server has {name!r}.", param="model", code="model_not_found"
            )
        self._check_counts(request)
        system = "\n".join(_text(each.content) for each in request.messages if isinstance(each, SystemMessage))
        turns = self._turns(request, attachments)
        message, _ = turns.pop()
        return {
            "message": message,
            "history": turns,
            "system": system or None,
            "deadline_ms": self._settings.limits.seconds * 1e3,
            **self._options(request),
        }

    def _check_counts(self, request: ChatRequest) -> None:
        limits = self._settings.limits
        if len(request.messages) > limits.messages:
            raise _bad(f"the request has {len(request.messages)} messages, more than {limits.messages}")
        pictures = sum(isinstance(part, ImagePart) for each in request.messages for part in each.content or ())
        if pictures > limits.pictures:
            raise _bad(f"the request has {pictures} pictures, more than {limits.pictures}")

    def _turns(self, request: ChatRequest, attachments: Mapping[str, bytes]) -> list[tuple[Items, str | None]]:
        """Exchanges of a user's items and the answer; the last one has none. Messages in a row become one."""
        turns: list[tuple[Items, str | None]] = []
        for message in request.messages:
            if isinstance(message, UserMessage):
                if not turns or turns[-1][1] is not None:
                    turns.append(([], None))
                turns[-1][0].extend(self._items(message, attachments))
            elif isinstance(message, AssistantMessage):
                if not turns:
                    raise _bad("the conversation begins with an answer; begin with a message of the user")
                items, answer = turns[-1]
                turns[-1] = items, (answer or "") + _answer(message)
        if not turns or turns[-1][1] is not None:
            raise _bad("the last message is not the user's; end with the message to be answered")
        return turns

    def _items(self, message: UserMessage, attachments: Mapping[str, bytes]) -> Items:
        if isinstance(message.content, str):
            return [{"text": message.content}]
        items: Items = []
        for part in message.content:
            if isinstance(part, TextPart):
                items.append({"text": part.text})
            else:
                items.append({"image": self._pictures.load(part.image_url.url, attachments, "a picture")})
        return items

    def _options(self, request: ChatRequest) -> dict[str, Any]:
        tokens = request.max_completion_tokens or request.max_tokens or self._default_tokens
        if tokens > self._settings.limits.tokens:
            limit = self._settings.limits.tokens
            raise ApiError(400, f"an answer of {tokens} tokens is wanted; the limit is {limit}.", param="max_tokens")
        options: dict[str, Any] = {"max_new_tokens": tokens}
        if request.temperature is not None:
            options |= {"do_sample": request.temperature > 0, "temperature": request.temperature}
        for name in ("top_p", "presence_penalty", "frequency_penalty"):
            if (value := getattr(request, name)) is not None:
                options[name] = value
        if request.seed is not None:
            options["seed"] = request.seed % 2**64
        if request.stop is not None:
            options["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
        if request.logit_bias:
            options["logit_bias"] = self._bias(request.logit_bias)
        if isinstance(request.response_format, JsonObjectFormat):
            options["constraint"] = Constraint.json()
        elif isinstance(request.response_format, JsonSchemaFormat):
            options["constraint"] = Constraint.json(request.response_format.json_schema.definition)
        return options

    def _bias(self, given: Mapping[str, float]) -> dict[int, float]:
        bias = {int(id_): value for id_, value in given.items()}
        if max(bias) >= self._vocab_size:
            raise ApiError(400, f"logit_bias names ids beyond {self._vocab_size - 1}.", param="logit_bias")
        return bias


def _answer(message: AssistantMessage) -> str:
    if message.qwenvl is not None and message.qwenvl.raw_text is not None:
        return message.qwenvl.raw_text
    return _text(message.content or "")


def _text(content: str | Iterable[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _bad(reason: str) -> ApiError:
    return ApiError(400, f"{reason}.", param="messages")
