"""Replies -> chat completions and their streamed chunks.

What OpenAI's schema has no place for (boxes, quads, the answer with its markup, what it cost) stands in the field
`qwenvl` of the message, in a stream of the last chunk's delta.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from typing import Any

from qwenvl_edge.replies.reply import Reply

_REASONS = {"stop": "stop", "stop_string": "stop", "cancelled": "stop"}


class Renderer:
    """Writes one completion: its id, time and model stay the same in all chunks."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model

    def completion(self, reply: Reply) -> dict[str, Any]:
        """The whole answer."""
        message = {"role": "assistant", "content": reply.text, "refusal": None, "qwenvl": extension(reply)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reply)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply)}

    def first(self) -> bytes:
        """The event that says who speaks."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """The event of a piece of text."""
        return self._event({"content": text})

    def last(self, reply: Reply) -> bytes:
        """The event behind the text."""
        return self._event({"qwenvl": extension(reply)}, finish_reason(reply))

    def usage(self, reply: Reply) -> bytes:
        """The event with the token counts."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(reply)})

    def _event(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}


DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def finish_reason(reply: Reply) -> str:
    """ "stop" or "length"; the engine's finer reason is in the extension."""
    return _REASONS.get(reply.finish_reason, "length")


def usage(reply: Reply) -> dict[str, Any]:
    """Token counts; cached_tokens of the prompt were computed for an earlier answer."""
    stats = reply.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
    }


def extension(reply: Reply) -> dict[str, Any]:
    """The field `qwenvl`: coordinates are pixels of the pictures as they were sent; `image` counts them from 0."""
    return {
        "raw_text": reply.raw_text,
        "boxes": [dataclasses.asdict(box) for box in reply.boxes],
        "quads": [dataclasses.asdict(quad) for quad in reply.quads],
        "malformed": list(reply.malformed),
        "finish_reason": reply.finish_reason,
        "complete": reply.complete,
        "ttft_ms": round(reply.stats.ttft_ms, 3),
        "tokens_per_s": round(reply.stats.tokens_per_s, 3),
    }
