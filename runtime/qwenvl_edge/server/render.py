"""Replies -> chat completions and their streamed chunks.

Boxes, quads, the answer with its markup and its cost, for which OpenAI's schema has no place, stand in the field
`qwenvl` of the message (Reply.to_dict), in a stream in that of the last chunk's delta.
"""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenvl_edge.families.tools import CallPiece, ToolCall
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
        if reply.tool_calls:  # which are no part of the text
            return reply.text
        return {"clean": reply.text, "raw": reply.raw_text, "pixels": reply.pixel_text}[self.text]

    def extension(self, reply: Reply) -> dict[str, Any]:
        """Return the field `qwenvl`."""
        found = reply.to_dict()
        return found if self.tell_cached else {name: each for name, each in found.items() if name not in _COST}

    def cached(self, reply: Reply) -> int:
        """Return how many tokens of the prompt were computed before, if that is told."""
        return reply.stats.reused_tokens if self.tell_cached else 0


class Renderer(ABC):
    """Writes one answer in a protocol, as a whole or as events."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.created = int(time.time())

    @property
    def streams_text(self) -> bool:
        """False if the text is sent when it is whole."""
        return self.form.text == "clean"

    def content(self, reply: Reply) -> str:
        """Return the answer's text."""
        return self.form.content(reply)

    @abstractmethod
    def whole(self, reply: Reply) -> dict[str, Any]:
        """Return the whole answer."""

    @abstractmethod
    def first(self) -> bytes:
        """Return the events before the text."""

    def thought(self, text: str) -> bytes:
        """Return the events of a piece of the reasoning before the answer."""
        return b""

    @abstractmethod
    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return the events of a piece of text and of the log-probabilities that came with it."""

    def call(self, piece: CallPiece) -> bytes:
        """Return the events of a piece of a tool's call."""
        return b""

    @abstractmethod
    def last(self, reply: Reply) -> bytes:
        """Return the events after the text."""

    def error(self, body: dict[str, Any]) -> bytes:
        """Return the event of an error that ends the stream."""
        return event(body)


class ChatRenderer(Renderer):
    """Writes one completion: its id, time and model stay the same in all chunks.

    Reasoning is in `reasoning_content`, as in the APIs of DeepSeek and vLLM.
    """

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.id = f"chatcmpl-{secrets.token_hex(12)}"

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        calls = [{"id": call_id(), **_call(call)} for call in reply.tool_calls]
        message: dict[str, Any] = {"role": "assistant"}
        message |= {"content": self.content(reply) or (None if calls else ""), "refusal": None}
        if reply.thinking is not None:
            message["reasoning_content"] = reply.thinking
        if calls:
            message["tool_calls"] = calls
        message["qwenvl"] = self.form.extension(reply)
        logprobs = None if reply.logprobs is None else _logprobs(reply.logprobs)
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(reply)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(reply, self.form)}

    def first(self) -> bytes:
        """See Renderer; the event holds the role."""
        return self._event({"role": "assistant", "content": ""})

    def thought(self, text: str) -> bytes:
        """See Renderer."""
        return self._event({"reasoning_content": text})

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer."""
        return self._event({"content": text}, logprobs=_logprobs(logprobs) if logprobs else None)

    def call(self, piece: CallPiece) -> bytes:
        """See Renderer; a call's name comes in a chunk of its own."""
        opened = b""
        if piece.name is not None:
            head = {"index": piece.call, "id": call_id(), "type": "function"}
            opened = self._event({"tool_calls": [{**head, "function": {"name": piece.name, "arguments": ""}}]})
        going_on = {"index": piece.call, "function": {"arguments": piece.arguments}}
        return opened + self._event({"tool_calls": [going_on]})

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        end = self._event({"qwenvl": self.form.extension(reply)}, finish_reason(reply))
        if self.form.include_usage:
            counts = {"choices": [], "usage": usage(reply, self.form)}
            end += event({**self._head("chat.completion.chunk"), **counts})
        return end + DONE

    def _event(
        self, delta: dict[str, Any], reason: str | None = None, *, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.form.model}


def call_id() -> str:
    """Return a new id of a tool's call."""
    return f"call_{secrets.token_hex(12)}"


def arguments_of(call: ToolCall) -> str:
    """Return a call's arguments as JSON."""
    return json.dumps(call.arguments, ensure_ascii=False)


def call_pieces(reply: Reply) -> list[CallPiece]:
    """Return the calls of an answer, a piece each."""
    return [CallPiece(number, call.name, arguments_of(call)) for number, call in enumerate(reply.tool_calls)]


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": arguments_of(call)}}


DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any], name: str | None = None) -> bytes:
    """Return a server-sent event, named or not."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + as_json(content) + b"\n\n"


def as_json(content: dict[str, Any]) -> bytes:
    """Return JSON in ASCII, which can hold whatever a model writes."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def finish_reason(reply: Reply) -> str:
    """Return "stop", "tool_calls" or "length"; the engine's finer reason is in the field `qwenvl`."""
    reason = _REASONS.get(reply.finish_reason, "length")
    return "tool_calls" if reply.tool_calls and reason == "stop" else reason


def usage(reply: Reply, form: Form) -> dict[str, Any]:
    """Return token counts; cached_tokens of the prompt were computed for an earlier answer."""
    stats = reply.stats
    reasons = {} if reply.thinking is None else {"reasoning_tokens": stats.thinking_tokens}
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": form.cached(reply)},
        **({"completion_tokens_details": reasons} if reasons else {}),
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [token.to_dict() for token in tokens], "refusal": None}
