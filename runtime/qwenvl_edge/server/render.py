"""Replies -> chat completions and their streamed chunks.

Boxes, quads, the answer with its markup and its cost, for which OpenAI's schema has no place, stand in the field
`qwenvl` of the message (Reply.to_dict), in a stream in that of the last chunk's delta.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from qwenvl_edge.replies.reply import Reply, TokenLogprob

_REASONS = {"stop": "stop", "stop_string": "stop", "cancelled": "stop"}


class Renderer:
    """Writes one completion: its id, time and model stay the same in all chunks."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model

    def completion(self, reply: Reply) -> dict[str, Any]:
        """Return the whole answer."""
        message = {"role": "assistant", "content": reply.text, "refusal": None, "qwenvl": reply.to_dict()}
        logprobs = None if reply.logprobs is None else _logprobs(reply.logprobs)
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(reply)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply)}

    def first(self) -> bytes:
        """Return the first event, which holds the role."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return the event of a piece of text and of the log-probabilities that came with it."""
        return self._event({"content": text}, logprobs=_logprobs(logprobs) if logprobs else None)

    def last(self, reply: Reply) -> bytes:
        """Return the event after the text."""
        return self._event({"qwenvl": reply.to_dict()}, finish_reason(reply))

    def usage(self, reply: Reply) -> bytes:
        """Return the event with the token counts."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(reply)})

    def _event(
        self, delta: dict[str, Any], reason: str | None = None, *, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}


DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def finish_reason(reply: Reply) -> str:
    """Return "stop" or "length"; the engine's finer reason is in the field `qwenvl`."""
    return _REASONS.get(reply.finish_reason, "length")


def usage(reply: Reply) -> dict[str, Any]:
    """Return token counts; cached_tokens of the prompt were computed for an earlier answer."""
    stats = reply.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [token.to_dict() for token in tokens], "refusal": None}
