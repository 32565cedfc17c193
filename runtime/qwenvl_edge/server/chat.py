"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.exchange import Asked, validated
from qwenvl_edge.server.forms import check_forms
from qwenvl_edge.server.messages import check_messages
from qwenvl_edge.server.render import ChatRenderer, Renderer
from qwenvl_edge.server.schema import ChatRequest
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.tools import check_tools
from qwenvl_edge.server.translate import Translator


def ask_chat(raw: dict[str, Any], salt: str, translator: Translator) -> Asked:
    """Read a request. Raises ApiError."""
    request = read_chat(raw, translator.limits, translator.abilities)
    translator.check_model(request.model)
    return asked_of(request, ChatRenderer(translator.form(request)), salt, translator)


def asked_of(request: ChatRequest, renderer: Renderer, salt: str, translator: Translator) -> Asked:
    """Return a conversation that a renderer is to continue."""
    return Asked(request, lambda: _spoken(request), lambda files: translator.chat(request, files, salt), renderer)


def read_chat(raw: dict[str, Any], limits: ServerLimits, abilities: Abilities) -> ChatRequest:
    """Return a chat request of its JSON. Raises ApiError."""
    check_messages(raw.get("messages"), limits, abilities)
    check_tools(raw, abilities)
    check_forms(raw)
    request: ChatRequest = validated(ChatRequest, raw)
    return request


def _spoken(request: ChatRequest) -> Any:
    """Return the words of a conversation, without its pictures and clips."""
    said = request.model_dump(include={"messages"}, exclude_none=True)["messages"]
    for message in said:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            for place in ("image_url", "video_url", "video"):
                part.pop(place, None)
    return said
