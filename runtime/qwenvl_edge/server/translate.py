"""A ChatRequest -> the arguments of Batcher.submit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.families import open_family
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.forms import wanted_form
from qwenvl_edge.server.render import Form
from qwenvl_edge.server.schema import (
    AssistantMessage,
    ChatRequest,
    RefusalPart,
    Sampling,
    SystemMessage,
    TextPart,
    UserMessage,
)
from qwenvl_edge.server.settings import ServerSettings
from qwenvl_edge.server.sources import PictureSource
from qwenvl_edge.server.trials import Trials
from qwenvl_edge.server.workers import Workers

Items = list[dict[str, Any]]
Turns = list[tuple[Items | None, str | None]]

_SAME_NAME = (
    *("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    "stop",
)


class Translator:
    """Checks requests against the server's limits and loads their pictures."""

    def __init__(self, settings: ServerSettings, manifest: Manifest, workers: Workers) -> None:
        self._settings = settings
        self._vocab_size = manifest.model.vocab_size
        self._default_tokens = min(manifest.generation.max_new_tokens, settings.limits.tokens)
        family = open_family(manifest)
        self._can_chat = family.can_chat(manifest.generation.chat_format)
        self._workers = workers
        self._trials = Trials()
        self._pictures = PictureSource(settings, workers, family.seen_size)

    async def close(self) -> None:
        """End what was started."""
        await self._trials.close()

    def check_model(self, model: str) -> None:
        """Check the model's name. Raises ApiError."""
        name = self._settings.model_name
        if model != name:
            raise ApiError(
                404, f"the model is unknown; this server has {name!r}.", param="model", code="model_not_found"
            )

    async def chat(self, request: ChatRequest, attachments: Mapping[str, bytes], salt: str) -> dict[str, Any]:
        """Return the keyword arguments of Batcher.submit.

        Args:
            request: its messages were checked.
            attachments: files sent along, by name.
            salt: that of the client's key.

        Raises:
            ApiError: the request is beyond a limit, or asks for something that is not there.
            QwenVLError: a picture or a form is malformed.
        """
        if not self._can_chat:
            raise ApiError(
                400,
                "the bundle holds a base model, which knows no conversations; send a prompt to POST /v1/completions.",
                param="model",
            )
        options = await self.options(request, salt)
        system = "\n".join(_text(each.content) for each in request.messages if isinstance(each, SystemMessage))
        turns = await self._turns(request, attachments, options["cache_salt"])
        message, _ = turns.pop()
        return {"message": message, "history": turns, "system": system or None, **options}

    async def options(self, request: Sampling, salt: str) -> dict[str, Any]:
        """Return the options of an answer as the engine names them. Raises as chat."""
        wanted = getattr(request, "max_completion_tokens", None) or request.max_tokens or self._default_tokens
        options: dict[str, Any] = {"max_new_tokens": min(wanted, self._settings.limits.tokens)}
        if request.temperature is not None:
            options |= {"do_sample": request.temperature > 0, "temperature": request.temperature}
        options |= {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
        if request.seed is not None:
            options["seed"] = request.seed % 2**64
        if request.logit_bias:
            options["logit_bias"] = self._bias(request.logit_bias)
        if isinstance(request, ChatRequest):
            options |= _logprobs(request)
        options |= _least(request, options["max_new_tokens"])
        options["cache_salt"] = f"{salt} {request.cache_salt}" if request.cache_salt else salt
        form = await self._workers.parse(wanted_form, request)
        if form is not None:
            await self._trials.check(form)
            options["constraint"] = form
        return options

    def form(self, request: Sampling) -> Form:
        """Return the way in which the answer is written."""
        raw = request.skip_special_tokens is False
        return Form(
            self._settings.model_name,
            text="pixels" if request.boxes == "text" else "raw" if raw else "clean",
            tell_cached=self._settings.tell_cached,
            include_usage=request.stream_options is not None and request.stream_options.include_usage,
        )

    async def _turns(self, request: ChatRequest, attachments: Mapping[str, bytes], salt: str) -> Turns:
        """Exchanges of a user's items and the answer; the last one has none. Messages in a row become one."""
        turns: Turns = []
        for number, message in enumerate(request.messages):
            if isinstance(message, UserMessage):
                if not turns or turns[-1][1] is not None:
                    turns.append(([], None))
                items = turns[-1][0]
                assert items is not None
                items.extend(await self._items(message, attachments, f"messages.{number}.content", salt))
            elif isinstance(message, AssistantMessage):
                if not turns:
                    turns.append((None, None))  # the assistant speaks first
                asked, answer = turns[-1]
                turns[-1] = asked, (answer or "") + _answer(message)
        if turns and turns[0] == (None, ""):
            del turns[0]
        if not turns or turns[-1][1] is not None:
            raise ApiError(
                400, "the last message is not the user's; end with the message to be answered.", param="messages"
            )
        return turns

    async def _items(self, message: UserMessage, attachments: Mapping[str, bytes], where: str, salt: str) -> Items:
        if isinstance(message.content, str):
            return [{"text": message.content}]
        items: Items = []
        for number, part in enumerate(message.content):
            if isinstance(part, TextPart):
                items.append({"text": part.text})
            else:
                name = f"the picture {where}.{number}"
                items.append({"image": await self._pictures.load(part.image_url.url, attachments, name, salt)})
        return items if self._settings.keep_order else _pictures_first(items)

    async def pictures(self, urls: Sequence[str], attachments: Mapping[str, bytes], salt: str) -> Items:
        """Return pictures as items of a message. Raises as chat."""
        if len(urls) > self._settings.limits.pictures:
            raise ApiError(
                400,
                f"the request has {len(urls)} pictures, more than {self._settings.limits.pictures}.",
                param="images",
            )
        names = (f"the picture images.{number}" for number in range(len(urls)))
        return [
            {"image": await self._pictures.load(url, attachments, name, salt)}
            for url, name in zip(urls, names, strict=True)
        ]

    def _bias(self, given: Mapping[str, float]) -> dict[int, float]:
        bias = {int(id_): value for id_, value in given.items()}
        if max(bias) >= self._vocab_size:
            raise ApiError(400, f"logit_bias names ids beyond {self._vocab_size - 1}.", param="logit_bias")
        return bias


def _pictures_first(items: Items) -> Items:
    """Put pictures before the words if all of them stand behind.

    Models are trained so, and many clients send words first. Where pictures stand between words, their order says what
    belongs to what, and stays.
    """
    kinds = ["image" in item for item in items]
    return sorted(items, key=lambda item: "image" not in item) if kinds == sorted(kinds) else items


def _logprobs(request: ChatRequest) -> dict[str, Any]:
    if request.logprobs:
        return {"logprobs": request.top_logprobs or 0}
    if request.top_logprobs is not None:
        raise ApiError(400, "top_logprobs is given without logprobs; send logprobs: true.", param="top_logprobs")
    return {}


def _least(request: Sampling, most: int) -> dict[str, Any]:
    """Return the least length of an answer, if one is asked for."""
    least = most if request.ignore_eos else request.min_tokens or 0
    if least > most:
        raise ApiError(400, f"min_tokens is {least}, but the answer has {most} tokens at most.", param="min_tokens")
    if least and request.stop and not request.ignore_eos:
        raise ApiError(400, "min_tokens and stop are given, which can contradict each other.", param="min_tokens")
    return {"min_new_tokens": least} if least else {}


def _answer(message: AssistantMessage) -> str:
    if message.qwenvl is not None and message.qwenvl.raw_text is not None:
        return message.qwenvl.raw_text
    return _text(message.content or message.refusal or "")


def _text(content: str | Iterable[TextPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
