"""Replies -> the objects and events of the Responses protocol."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.render import Form, event, finish_reason

_ECHOED = ("instructions", "max_output_tokens", "temperature", "top_p", "text", "reasoning", "tool_choice")


class ResponseRenderer:
    """Writes one response with one message. See render.Renderer."""

    def __init__(self, form: Form, given: dict[str, Any]) -> None:
        self._form = form
        self._id, self._message = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._given = {name: given.get(name) for name in _ECHOED}
        self._number = 0
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        logprobs = [token.to_dict() for token in reply.logprobs or ()]
        return self._response(reply, [self._item(self._part(self.content(reply), logprobs), reply)])

    def first(self) -> bytes:
        """See Renderer."""
        opened = {"id": self._message, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return b"".join(
            (
                self._event("response.created", response=self._response(None, [])),
                self._event("response.in_progress", response=self._response(None, [])),
                self._event("response.output_item.added", output_index=0, item=opened),
                self._event("response.content_part.added", **self._at(), part=self._part("", [])),
            )
        )

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer."""
        found = [token.to_dict() for token in logprobs]
        self._text.append(text)
        self._logprobs += found
        return self._event("response.output_text.delta", **self._at(), delta=text, logprobs=found)

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        text = "".join(self._text)
        part = self._part(text, self._logprobs)
        item = self._item(part, reply)
        response = self._response(reply, [item])
        return b"".join(
            (
                self._event("response.output_text.done", **self._at(), text=text, logprobs=self._logprobs),
                self._event("response.content_part.done", **self._at(), part=part),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{response['status']}", response=response),
            )
        )

    def content(self, reply: Reply) -> str:
        """See Renderer."""
        return self._form.content(reply)

    def error(self, body: dict[str, Any]) -> bytes:
        """See Renderer."""
        error = {"code": body["error"]["code"] or "server_error", "message": body["error"]["message"]}
        failed = {**self._response(None, []), "status": "failed", "error": error}
        return self._event("response.failed", response=failed)

    def _event(self, kind: str, **fields: Any) -> bytes:
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event(content, kind)

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _item(self, part: dict[str, Any], reply: Reply) -> dict[str, Any]:
        status = "completed" if finish_reason(reply) == "stop" else "incomplete"
        head = {"id": self._message, "type": "message", "status": status, "role": "assistant"}
        return {**head, "content": [part], "qwenvl": self._form.extension(reply)}

    def _response(self, reply: Reply | None, output: list[dict[str, Any]]) -> dict[str, Any]:
        whole = reply is not None and finish_reason(reply) == "stop"
        given = self._given
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if reply is None else "completed" if whole else "incomplete",
            "error": None,
            "incomplete_details": None if reply is None or whole else {"reason": "max_output_tokens"},
            "instructions": given["instructions"],
            "max_output_tokens": given["max_output_tokens"],
            "model": self._form.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": given["temperature"],
            "text": given["text"] or {"format": {"type": "text"}},
            "tool_choice": given["tool_choice"] or "none",
            "tools": [],
            "top_p": given["top_p"],
            "truncation": "disabled",
            "usage": None if reply is None else self._usage(reply),
            "metadata": {},
        }

    def _usage(self, reply: Reply) -> dict[str, Any]:
        stats = reply.stats
        return {
            "input_tokens": stats.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self._form.cached(reply)},
            "output_tokens": stats.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": stats.prompt_tokens + stats.new_tokens,
        }
