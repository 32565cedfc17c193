"""Replies -> the objects and events of the Responses protocol."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenvl_edge.families.tools import CallPiece
from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.render import Form, Renderer, arguments_of, call_id, event, finish_reason

_ECHOED = (
    *("instructions", "max_output_tokens", "temperature", "top_p", "text", "tool_choice", "tools"),
    *("previous_response_id", "reasoning", "parallel_tool_calls", "store"),
)


@dataclass
class _Item:
    """An item of the output under way; text: of a message or reasoning, or the arguments of a call."""

    kind: Literal["reasoning", "message", "function_call"]
    id: str
    name: str = ""
    call_id: str = ""
    text: str = ""


class ResponseRenderer(Renderer):
    """Writes one response: the reasoning, if the model reasons, a message, and an item for each call of a tool.

    In a stream an item is opened by its first piece, and ended by that of the next item or by the end of the answer.
    """

    def __init__(self, form: Form, given: dict[str, Any]) -> None:
        super().__init__(form)
        self.id = _new_id("resp")
        self._given = {name: given.get(name) for name in _ECHOED}
        self._number = 0
        self._ended: list[dict[str, Any]] = []
        self._item: _Item | None = None
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        text, logprobs = self.content(reply), [token.to_dict() for token in reply.logprobs or ()]
        output = [_thinking(_new_id("rs"), reply.thinking)] if reply.thinking else []
        if text or not reply.tool_calls:
            message = _message(_new_id("msg"), text, logprobs, _status(reply))
            output.append({**message, "qwenvl": self.form.extension(reply)})
        output += [_called(_call(call.name), arguments_of(call)) for call in reply.tool_calls]
        return self._response(reply, output)

    def message(self, reply: Reply) -> dict[str, Any]:
        """Return the answer as a message of a chat request."""
        return {"role": "assistant", "content": reply.text, "qwenvl": {"raw_text": reply.raw_text}}

    def first(self) -> bytes:
        """See Renderer."""
        created = self._event("response.created", response=self._response(None, []))
        return created + self._event("response.in_progress", response=self._response(None, []))

    def thought(self, text: str) -> bytes:
        """See Renderer."""
        opened, item = self._into("reasoning", "rs")
        item.text += text
        return opened + self._event("response.reasoning_text.delta", **self._inside(item), delta=text)

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer; log-probabilities without text wait for some."""
        found = [token.to_dict() for token in logprobs]
        self._logprobs += found
        if not text:
            return b""
        opened, item = self._into("message", "msg")
        item.text += text
        return opened + self._event("response.output_text.delta", **self._inside(item), delta=text, logprobs=found)

    def call(self, piece: CallPiece) -> bytes:
        """See Renderer."""
        opened = b"" if piece.name is None else self._end() + self._open(_call(piece.name))
        assert self._item is not None
        self._item.text += piece.arguments
        delta = self._event("response.function_call_arguments.delta", **self._at(self._item), delta=piece.arguments)
        return opened + delta

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        events = self._end(reply)
        if all(item["type"] == "reasoning" for item in self._ended):
            events += self._open(_Item("message", _new_id("msg"))) + self._end(reply)
        for item in self._ended:
            if item["type"] == "message":
                item["qwenvl"] = self.form.extension(reply)
                item["content"][0]["logprobs"] = self._logprobs
        response = self._response(reply, self._ended)
        return events + self._event(f"response.{response['status']}", response=response)

    def error(self, body: dict[str, Any]) -> bytes:
        """See Renderer."""
        error = {"code": body["error"]["code"] or "server_error", "message": body["error"]["message"]}
        failed = {**self._response(None, []), "status": "failed", "error": error}
        return self._event("response.failed", response=failed)

    def _into(self, kind: Literal["reasoning", "message"], prefix: str) -> tuple[bytes, _Item]:
        """Return the item of a kind that is under way, or a new one, and the events that lead to it."""
        if self._item is not None and self._item.kind == kind:
            return b"", self._item
        item = _Item(kind, _new_id(prefix))
        return self._end() + self._open(item), item

    def _open(self, item: _Item) -> bytes:
        """Begin an item; return its events."""
        self._item = item
        begun: dict[str, Any]
        match item.kind:
            case "reasoning":
                begun = {"summary": [], "content": []}
            case "message":
                begun = {"role": "assistant", "content": []}
            case "function_call":
                begun = {"call_id": item.call_id, "name": item.name, "arguments": ""}
        opened = {"id": item.id, "type": item.kind, "status": "in_progress", **begun}
        events = self._event("response.output_item.added", output_index=len(self._ended), item=opened)
        if item.kind == "message":
            events += self._event("response.content_part.added", **self._inside(item), part=_part("", []))
        return events

    def _end(self, reply: Reply | None = None) -> bytes:
        """End the item that is under way, if there is one; return its events. reply: known at the answer's end."""
        if (item := self._item) is None:
            return b""
        match item.kind:
            case "reasoning":
                item.text = item.text.strip()
                ended = _thinking(item.id, item.text)
                events = self._event("response.reasoning_text.done", **self._inside(item), text=item.text)
            case "message":
                ended = _message(item.id, item.text, self._logprobs, _status(reply))
                if reply is not None:
                    ended["qwenvl"] = self.form.extension(reply)
                (part,) = ended["content"]
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                events = self._event("response.output_text.done", **self._inside(item), **done)
                events += self._event("response.content_part.done", **self._inside(item), part=part)
            case "function_call":
                ended = _called(item, item.text, _status(reply))
                done = {"name": item.name, "arguments": item.text}
                events = self._event("response.function_call_arguments.done", **self._at(item), **done)
        events += self._event("response.output_item.done", output_index=len(self._ended), item=ended)
        self._ended.append(ended)
        self._item = None
        return events

    def _event(self, kind: str, **fields: Any) -> bytes:
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event(content, kind)

    def _at(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._ended)}

    def _inside(self, item: _Item) -> dict[str, Any]:
        return {**self._at(item), "content_index": 0}

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


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _status(reply: Reply | None) -> str:
    """Return the status of an item that ends with the answer, or before it."""
    return "incomplete" if reply is not None and finish_reason(reply) == "length" else "completed"


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _message(item: str, text: str, logprobs: list[dict[str, Any]], status: str) -> dict[str, Any]:
    content = [_part(text, logprobs)]
    return {"id": item, "type": "message", "status": status, "role": "assistant", "content": content}


def _thinking(item: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item, "type": "reasoning", "status": "completed", "summary": [], "content": content}


def _call(name: str) -> _Item:
    return _Item("function_call", _new_id("fc"), name, call_id())


def _called(call: _Item, arguments: str, status: str = "completed") -> dict[str, Any]:
    named = {"call_id": call.call_id, "name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function_call", "status": status, **named}
