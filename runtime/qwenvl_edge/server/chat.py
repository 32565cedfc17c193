"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.server.exchange import validated
from qwenvl_edge.server.forms import check_grammars
from qwenvl_edge.server.messages import check_messages
from qwenvl_edge.server.render import ChatRenderer
from qwenvl_edge.server.schema import ChatRequest
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.tools import check_tools
from qwenvl_edge.server.translate import Translator


@dataclass(frozen=True)
class AskedChat:
    """A conversation to be continued. See exchange.Asked."""

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

    def renderer(self) -> ChatRenderer:
        """See Asked."""
        return ChatRenderer(self.translator.form(self.options))


def read_chat(raw: dict[str, Any], limits: ServerLimits) -> ChatRequest:
    """Return a chat request of its JSON. Raises ApiError."""
    check_messages(raw.get("messages"), limits)
    check_tools(raw)
    check_grammars(raw)
    request: ChatRequest = validated(ChatRequest, raw)
    return request


def spoken(request: ChatRequest) -> Any:
    """Return the words of a conversation, without its pictures."""
    said = request.model_dump(include={"messages"}, exclude_none=True)["messages"]
    for message in said:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            part.pop("image_url", None)
    return said
