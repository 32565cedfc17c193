"""POST /v1/completions: a text continued without a chat template, as base models are used; pictures before it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from qwenvl_edge.inputs.options import MOST_LOGPROBS
from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.exchange import validated
from qwenvl_edge.server.forms import check_grammars
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.render import DONE, Form, event, finish_reason, usage
from qwenvl_edge.server.schema import LABELS, Sampling
from qwenvl_edge.server.translate import Translator


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value


class CompletionRequest(Sampling):
    """A text to be continued.

    prompt: the text, in which grounding markup is markup. images: an extension, places of pictures before it, as in
    `image_url.url` of a message.
    """

    model: str
    prompt: Annotated[str, BeforeValidator(_single)]
    images: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=64)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, data: Any) -> Any:
        return {name: each for name, each in data.items() if name not in LABELS} if isinstance(data, dict) else data


@dataclass(frozen=True)
class AskedCompletion:
    """A text to be continued. See exchange.Asked."""

    options: CompletionRequest
    translator: Translator

    @property
    def streams_text(self) -> bool:
        """See Asked."""
        return self.translator.form(self.options).text == "clean"

    def words(self) -> Any:
        """See Asked."""
        return self.options.prompt

    async def arguments(self, attachments: Mapping[str, bytes], salt: str) -> dict[str, Any]:
        """See Asked."""
        self.translator.check_model(self.options.model)
        options = await self.translator.options(self.options, salt)
        if self.options.logprobs is not None:
            options["logprobs"] = self.options.logprobs
        items = await self.translator.pictures(self.options.images, attachments, options["cache_salt"])
        return {"message": [*items, {"text": self.options.prompt}], "history": [], "raw": True, **options}

    def renderer(self) -> CompletionRenderer:
        """See Asked."""
        return CompletionRenderer(self.translator.form(self.options))


def read_completion(raw: dict[str, Any]) -> CompletionRequest:
    """Return a completion request of its JSON. Raises ApiError."""
    check_grammars(raw)
    prompt = raw.get("prompt")
    if isinstance(prompt, list) and not (len(prompt) == 1 and isinstance(prompt[0], str)):
        raise refused("prompt", "is a list; send one text, not several or token ids")
    request: CompletionRequest = validated(CompletionRequest, raw)
    return request


class CompletionRenderer:
    """Writes one completion. See render.Renderer."""

    def __init__(self, form: Form) -> None:
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._form = form
        self._offset = 0

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        choice = self._choice(self.content(reply), reply.logprobs or (), finish_reason(reply))
        if reply.logprobs is None:
            choice["logprobs"] = None
        choice["qwenvl"] = self._form.extension(reply)
        return {**self._head(), "choices": [choice], "usage": usage(reply, self._form)}

    def first(self) -> bytes:
        """See Renderer; there is none."""
        return b""

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer."""
        return event({**self._head(), "choices": [self._choice(text, logprobs, None)]})

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        choice = {**self._choice("", (), finish_reason(reply)), "qwenvl": self._form.extension(reply)}
        end = event({**self._head(), "choices": [choice]})
        if self._form.include_usage:
            end += event({**self._head(), "choices": [], "usage": usage(reply, self._form)})
        return end + DONE

    def content(self, reply: Reply) -> str:
        """See Renderer."""
        return self._form.content(reply)

    def error(self, body: dict[str, Any]) -> bytes:
        """See Renderer."""
        return event(body)

    def _head(self) -> dict[str, Any]:
        created = self._created
        return {"id": self._id, "object": "text_completion", "created": created, "model": self._form.model}

    def _choice(self, text: str, tokens: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(_text(token))
        return {
            "tokens": [_text(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{_text(each): each.logprob for each in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _text(token: TokenLogprob) -> str:
    return token.data.decode(errors="replace")
