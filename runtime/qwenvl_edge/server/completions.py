"""POST /v1/completions: a text continued without a chat template, as base models are used; pictures before it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from qwenvl_edge.inputs.options import MOST_LOGPROBS
from qwenvl_edge.replies.reply import Reply, TokenLogprob
from qwenvl_edge.server.exchange import Asked, validated
from qwenvl_edge.server.forms import check_forms
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.render import DONE, Form, Renderer, event, finish_reason, usage
from qwenvl_edge.server.schema import Sampling, without_labels
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

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, data: Any) -> Any:
        return without_labels(data)


def ask_completion(raw: dict[str, Any], salt: str, translator: Translator) -> Asked:
    """Read a request. Raises ApiError."""
    request = read_completion(raw)
    translator.check_model(request.model)

    async def arguments(files: Mapping[str, bytes]) -> dict[str, Any]:
        options = await translator.options(request, salt)
        if request.logprobs is not None:
            options["logprobs"] = request.logprobs
        items = await translator.pictures(request.images, files, options["cache_salt"])
        return {"message": [*items, {"text": request.prompt}], "history": [], "raw": True, **options}

    return Asked(request, lambda: request.prompt, arguments, CompletionRenderer(translator.form(request)))


def read_completion(raw: dict[str, Any]) -> CompletionRequest:
    """Return a completion request of its JSON. Raises ApiError."""
    check_forms(raw)
    prompt = raw.get("prompt")
    if isinstance(prompt, list) and not (len(prompt) == 1 and isinstance(prompt[0], str)):
        raise refused("prompt", "is a list; send one text, not several or token ids")
    request: CompletionRequest = validated(CompletionRequest, raw)
    return request


class CompletionRenderer(Renderer):
    """Writes one completion."""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._offset = 0

    def whole(self, reply: Reply) -> dict[str, Any]:
        """See Renderer."""
        choice = self._choice(self.content(reply), reply.logprobs or (), finish_reason(reply))
        if reply.logprobs is None:
            choice["logprobs"] = None
        choice["qwenvl"] = self.form.extension(reply)
        return {**self._head(), "choices": [choice], "usage": usage(reply, self.form)}

    def first(self) -> bytes:
        """See Renderer; there is none."""
        return b""

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """See Renderer."""
        return event({**self._head(), "choices": [self._choice(text, logprobs, None)]})

    def last(self, reply: Reply) -> bytes:
        """See Renderer."""
        choice = {**self._choice("", (), finish_reason(reply)), "qwenvl": self.form.extension(reply)}
        end = event({**self._head(), "choices": [choice]})
        if self.form.include_usage:
            end += event({**self._head(), "choices": [], "usage": usage(reply, self.form)})
        return end + DONE

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self.created, "model": self.form.model}

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
