"""Replies -> the objects and events of the Responses protocol."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from qwenvl_edge.families.tools import ToolCall
from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.render import Form, Renderer, arguments_of, call_id, event, finish_reason

_ECHOED = (
    *("instructions", "max_output_tokens", "temperature", "top_p", "text", "tool_choice", "tools"),
    *("previous_response_id", "reasoning", "parallel_tool_calls", "store"),
)


class ResponseRenderer(Renderer):
    """Writes one response: the reasoning, if the model reasons, a message, and an item for each call of a tool.

    In a stream an item is opened by its first piece.
    """

    def __init__(self, form: Form, given: dict[str, Any]) -> None:
        super().__init__(form)
        self.id = f"resp_{secrets.token_hex(16)}"
        self._message, self._reasoning = f"msg_{secrets.token_hex(16)}", f"rs_{secrets.token_hex(16)}"
        self._given = {name: given.get(name) for name in _ECHOED}
        self._number = 0
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        logprobs = [token.to_dict() for token in reply.logprobs or ()]
        return self._response(reply, self._items(reply, self.content(reply), logprobs))

    def message(self, reply: Reply) -> dict[str, Any]:
        """Return the answer as a message of a chat request."""
        return {"role": "assistant", "content": reply.text, "qwenvl": {"raw_text": reply.raw_text}}

    def first(self) -> bytes:
        """See Renderer."""
        created = self._event("response.created", response=self._response(None, []))
        return created + self._event("response.in_progress", response=self._response(None, []))

    def thought(self, text: str) -> bytes:
        """See Renderer."""
        opened = b""
        if not self._thoughts:
            item = {"id": self._reasoning, "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
            opened = self._event("response.output_item.added", output_index=0, item=item)
        self._thoughts.append(text)
        return opened + self._event("response.reasoning_text.delta", **self._at(self._reasoning, 0), delta=text)

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer; log-probabilities without text wait for some."""
        found = [token.to_dict() for token in logprobs]
        self._logprobs += found
        if not text:
            return b""
        opened = b"" if self._text else self._open()
        self._text.append(text)
        return opened + self._event("response.output_text.delta", **self._in_message(), delta=text, logprobs=found)

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        items = self._items(reply, "".join(self._text), self._logprobs)
        events = [] if self._text else [self._end_thoughts()]
        for number, item in enumerate(items):
            if item["type"] == "message":
                events.append(b"" if self._text else self._open())
                (part,) = item["content"]
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                events.append(self._event("response.output_text.done", **self._in_message(), **done))
                events.append(self._event("response.content_part.done", **self._in_message(), part=part))
            if item["type"] == "function_call":
                events.append(self._call(number, item))
            if item["type"] != "reasoning":
                events.append(self._event("response.output_item.done", output_index=number, item=item))
        response = self._response(reply, items)
        return b"".join((*events, self._event(f"response.{response['status']}", response=response)))

    def error(self, body: dict[str, Any]) -> bytes:
        """See Renderer."""
        error = {"code": body["error"]["code"] or "server_error", "message": body["error"]["message"]}
        failed = {**self._response(None, []), "status": "failed", "error": error}
        return self._event("response.failed", response=failed)

    def _open(self) -> bytes:
        """Return the events before the message's text."""
        opened = {"id": self._message, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return b"".join(
            (
                self._end_thoughts(),
                self._event("response.output_item.added", output_index=int(bool(self._thoughts)), item=opened),
                self._event("response.content_part.added", **self._in_message(), part=self._part("", [])),
            )
        )

    def _end_thoughts(self) -> bytes:
        """Return the events after the reasoning, if there was some."""
        if not self._thoughts:
            return b""
        text = "".join(self._thoughts).strip()
        done = self._event("response.reasoning_text.done", **self._at(self._reasoning, 0), text=text)
        return done + self._event("response.output_item.done", output_index=0, item=self._thinking(text))

    def _call(self, number: int, item: dict[str, Any]) -> bytes:
        """Return the events of a call but its end."""
        at = {"item_id": item["id"], "output_index": number}
        opened = {**item, "arguments": "", "status": "in_progress"}
        return b"".join(
            (
                self._event("response.output_item.added", output_index=number, item=opened),
                self._event("response.function_call_arguments.delta", **at, delta=item["arguments"]),
                self._event(
                    "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
                ),
            )
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event(content, kind)

    def _in_message(self) -> dict[str, Any]:
        return self._at(self._message, int(bool(self._thoughts)))

    def _at(self, item: str, output: int) -> dict[str, Any]:
        return {"item_id": item, "output_index": output, "content_index": 0}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _items(self, reply: Reply, text: str, logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the items of a whole answer."""
        items = [self._thinking(reply.thinking)] if reply.thinking else []
        if text or not reply.tool_calls:
            status = "incomplete" if finish_reason(reply) == "length" else "completed"
            head = {"id": self._message, "type": "message", "status": status, "role": "assistant"}
            items.append({**head, "content": [self._part(text, logprobs)], "qwenvl": self.form.extension(reply)})
        return items + [_called(call) for call in reply.tool_calls]

    def _thinking(self, text: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}]
        return {"id": self._reasoning, "type": "reasoning", "status": "completed", "summary": [], "content": content}

    def _response(self, reply: Reply | None, output: list[dict[str, Any]]) -> dict[str, Any]:
        whole = reply is not None and finish_reason(reply) != "length"
        given = self._given
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if reply is None else "completed" if whole else "incomplete",
            "error": None,
            "incomplete_details": None if reply is None or whole else {"reason": "max_output_tokens"},
            "instructions": given["instructions"],
            "max_output_tokens": given["max_output_tokens"],
            "model": self.form.model,
            "output": output,
            "parallel_tool_calls": given["parallel_tool_calls"] is not False,
            "previous_response_id": given["previous_response_id"],
            "reasoning": {"effort": (given["reasoning"] or {}).get("effort"), "summary": None},
            "store": given["store"] is not False,
            "temperature": given["temperature"],
            "text": given["text"] or {"format": {"type": "text"}},
            "tool_choice": given["tool_choice"] or ("auto" if given["tools"] else "none"),
            "tools": given["tools"] or [],
            "top_p": given["top_p"],
            "truncation": "disabled",
            "usage": None if reply is None else self._usage(reply),
            "metadata": {},
        }

    def _usage(self, reply: Reply) -> dict[str, Any]:
        stats = reply.stats
        return {
            "input_tokens": stats.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.form.cached(reply)},
            "output_tokens": stats.new_tokens,
            "output_tokens_details": {"reasoning_tokens": stats.thinking_tokens},
            "total_tokens": stats.prompt_tokens + stats.new_tokens,
        }


def _called(call: ToolCall) -> dict[str, Any]:
    head = {"id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "status": "completed"}
    return {**head, "call_id": call_id(), "name": call.name, "arguments": arguments_of(call)}
