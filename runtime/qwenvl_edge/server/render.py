"""Replies -> chat completions and their streamed chunks.

Boxes, quads, the answer with its markup and its cost, for which OpenAI's schema has no place, stand in the field
`qwenvl` of the message (Reply.to_dict), in a stream in that of the last chunk's delta.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from qwenvl_edge.replies.reply import Reply, TokenLogprob

_REASONS = {"stop": "stop", "stop_string": "stop", "cancelled": "stop"}
_COST = ("reused_tokens", "images_encoded", "ttft_ms")


@dataclass(frozen=True)
class Form:
    """The way in which an answer is written.

    model: its name. text: clean words ("clean"), the model's own markup ("raw"), or that with its places in pixels
    ("pixels"); the last two are streamed when the answer is whole. tell_cached: say how much was computed before.
    include_usage: end a stream with the token counts.
    """

    model: str
    text: Literal["clean", "raw", "pixels"] = "clean"
    tell_cached: bool = True
    include_usage: bool = False

    def content(self, reply: Reply) -> str:
        """Return the answer's text."""
        return {"clean": reply.text, "raw": reply.raw_text, "pixels": reply.pixel_text}[self.text]

    def extension(self, reply: Reply) -> dict[str, Any]:
        """Return the field `qwenvl`."""
        found = reply.to_dict()
        return found if self.tell_cached else {name: each for name, each in found.items() if name not in _COST}

    def cached(self, reply: Reply) -> int:
        """Return how many tokens of the prompt were computed before, if that is told."""
        return reply.stats.reused_tokens if self.tell_cached else 0


class Renderer(Protocol):
    """Writes one answer in a protocol, as a whole or as events."""

    def whole(self, reply: Reply) -> dict[str, Any]:
        """Return the whole answer."""

    def first(self) -> bytes:
        """Return the events before the text."""

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return the events of a piece of text and of the log-probabilities that came with it."""

    def last(self, reply: Reply) -> bytes:
        """Return the events after the text."""

    def content(self, reply: Reply) -> str:
        """Return the answer's text as this protocol gives it."""

    def error(self, body: dict[str, Any]) -> bytes:
        """Return the event of an error that ends the stream."""


class ChatRenderer:
    """Writes one completion: its id, time and model stay the same in all chunks."""

    def __init__(self, form: Form) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._form = form

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        content, extension = self._form.content(reply), self._form.extension(reply)
        message = {"role": "assistant", "content": content, "refusal": None, "qwenvl": extension}
        logprobs = None if reply.logprobs is None else _logprobs(reply.logprobs)
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(reply)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply, self._form)}

    def first(self) -> bytes:
        """See Renderer; the event holds the role."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer."""
        return self._event({"content": text}, logprobs=_logprobs(logprobs) if logprobs else None)

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        end = self._event({"qwenvl": self._form.extension(reply)}, finish_reason(reply))
        if self._form.include_usage:
            counts = {"choices": [], "usage": usage(reply, self._form)}
            end += event({**self._head("chat.completion.chunk"), **counts})
        return end + DONE

    def content(self, reply: Reply) -> str:
        """See Renderer."""
        return self._form.content(reply)

    def error(self, body: dict[str, Any]) -> bytes:
        """See Renderer."""
        return event(body)

    def _event(
        self, delta: dict[str, Any], reason: str | None = None, *, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._form.model}


DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any], name: str | None = None) -> bytes:
    """Return a server-sent event, named or not."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def finish_reason(reply: Reply) -> str:
    """Return "stop" or "length"; the engine's finer reason is in the field `qwenvl`."""
    return _REASONS.get(reply.finish_reason, "length")


def usage(reply: Reply, form: Form) -> dict[str, Any]:
    """Return token counts; cached_tokens of the prompt were computed for an earlier answer."""
    stats = reply.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": form.cached(reply)},
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [token.to_dict() for token in tokens], "refusal": None}
