"""One request that is to be answered, from its first byte to its answer's last.

    body whole -> place -> JSON -> schema -> pictures, form -> batcher -> text or events

A request holds nothing but its bytes until its body is whole, then one of the server's places until its answer is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.inputs.clips import Clip
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.server.complaints import complaint
from qwenvl_edge.server.errors import SERVER, ApiError, from_engine
from qwenvl_edge.server.intake import Arrived, ClientDisconnect, parse, read_body
from qwenvl_edge.server.logs import LOGGER, log
from qwenvl_edge.server.memory import Budget, Holding
from qwenvl_edge.server.meter import metered
from qwenvl_edge.server.render import Renderer, as_json, call_pieces
from qwenvl_edge.server.schema import Sampling
from qwenvl_edge.server.service import Service, StreamedAnswer
from qwenvl_edge.server.settings import ServerLimits, ServerSettings
from qwenvl_edge.server.workers import Workers

_CLIENT_CLOSED = 499  # nobody reads it; the log does


@dataclass(frozen=True)
class Asked:
    """A request that its protocol has read.

    options: those of the answer. words: gives the words of the question for the log, without pictures. arguments: gives
    the arguments of Batcher.submit from the attached files; raises ApiError or QwenVLError. renderer: writes the
    answer. answered: is told the reply.
    """

    options: Sampling
    words: Callable[[], Any]
    arguments: Callable[[Mapping[str, bytes]], Awaitable[dict[str, Any]]]
    renderer: Renderer
    answered: Callable[[Reply], None] | None = None


Reader = Callable[[dict[str, Any], str], Asked]
"""Reads a request's JSON in a protocol, sent under a salt; called in another thread. Raises ApiError."""


class Exchanges:
    """Answers requests with a service, within the server's limits."""

    def __init__(self, settings: ServerSettings, workers: Workers, service: Service) -> None:
        self._settings = settings
        self._workers = workers
        self._service = service
        self._budget = Budget(settings.limits.memory_bytes)

    async def answer(self, request: Request, read: Reader) -> Response:
        """Answer a request. Raises ApiError."""
        limits, started = self._settings.limits, time.monotonic()
        with contextlib.ExitStack() as place:
            try:
                holding = place.enter_context(self._budget.hold())
                self._service.check_room(request.state.client)
                arrived = await read_body(request, limits, holding)
                token = place.enter_context(self._service.admit(request.state.client))
                gone = asyncio.ensure_future(_gone(request, token))
                place.callback(gone.cancel)
                preparing = asyncio.ensure_future(self._begin(arrived, read, holding, token, started))
                del arrived  # its bytes go as soon as they are read
                asked, answer = await _unless(gone, preparing, limits.seconds)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_CLOSED)
            request_id = request.state.request_id
            if asked.options.stream:
                return _EventStream(self._events(asked, answer, request_id), place.pop_all())
            whole = as_json(asked.renderer.whole(await self._reply(asked, answer, request_id)))
            return Response(whole, media_type="application/json")

    async def _begin(
        self, arrived: Arrived, read: Reader, holding: Holding, token: CancelToken, started: float
    ) -> tuple[Asked, StreamedAnswer]:
        """Read a request and queue it; raises ApiError."""
        state = arrived.request.state
        request_id, salt, client = state.request_id, state.salt, state.client
        try:
            with metered(lambda seconds: self._service.charge(client, seconds)):
                asked, attachments = await self._workers.parse(_read, arrived, self._settings.limits, read, salt)
                del arrived
                arguments = await asked.arguments(attachments)
                del attachments
            holding.set(_bytes(arguments))
            left = max(0.001, self._settings.limits.seconds - (time.monotonic() - started))
            arguments |= {"deadline_ms": left * 1e3, "client": client}
            return asked, await self._service.submit(arguments, token, stream=asked.options.stream)
        except ApiError:
            raise
        except Exception as error:
            raise _logged(error, request_id) from None

    async def _reply(self, asked: Asked, answer: StreamedAnswer, request_id: str) -> Reply:
        try:
            reply = await answer.reply()
        except Exception as error:
            raise _logged(error, request_id) from None
        if asked.answered is not None:
            asked.answered(reply)
        stats = reply.stats
        log(
            "answer",
            id=request_id,
            reason=reply.finish_reason,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.reused_tokens,
            new_tokens=stats.new_tokens,
            ttft_ms=round(stats.ttft_ms, 1),
            tokens_per_s=round(stats.tokens_per_s, 1),
            **({"messages": asked.words(), "answer": reply.raw_text} if self._settings.log_prompts else {}),
        )
        return reply

    async def _events(self, asked: Asked, answer: StreamedAnswer, request_id: str) -> AsyncIterator[bytes]:
        renderer = asked.renderer
        yield renderer.first()
        async for text, thought, calls, logprobs in answer.pieces():
            if thought:
                yield renderer.thought(thought)
            if renderer.streams_text:
                if text or logprobs:
                    yield renderer.piece(text, logprobs)
                for call in calls:
                    yield renderer.call(call)
        try:
            reply = await self._reply(asked, answer, request_id)
        except ApiError as error:  # the status is sent already
            yield renderer.error(error.body)
            return
        if not renderer.streams_text:
            yield renderer.piece(renderer.content(reply), reply.logprobs or ())
            for call in call_pieces(reply):
                yield renderer.call(call)
        yield renderer.last(reply)


class _EventStream(StreamingResponse):
    """Server-sent events that keep a request's place until they end, for whatever reason."""

    def __init__(self, events: AsyncIterator[bytes], place: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


def validated(model: type[BaseModel], raw: dict[str, Any]) -> Any:
    """Return the record of a request's JSON. Raises ApiError, which says what is wrong with its first mistake."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise complaint(error, raw, model) from None
    except RecursionError:
        raise ApiError(400, "the request is nested too deeply.") from None


def _read(arrived: Arrived, limits: ServerLimits, read: Reader, salt: str) -> tuple[Asked, dict[str, bytes]]:
    """Return what a body asks for, and the files sent with it. Raises ApiError."""
    raw, attachments = parse(arrived, limits)
    return read(raw, salt), attachments


async def _gone(request: Request, token: CancelToken) -> None:
    """Wait until the client goes away, then end its answer; its row goes to the next one."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    token.cancel()


async def _unless(
    gone: asyncio.Future[None], preparing: asyncio.Future[tuple[Asked, StreamedAnswer]], seconds: float
) -> tuple[Asked, StreamedAnswer]:
    """Wait for a request to be prepared; a client that goes away, or the time that is up, ends that."""
    try:
        both: set[asyncio.Future[Any]] = {gone, preparing}
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            return preparing.result()
        if gone.done():
            raise ClientDisconnect
        raise ApiError(503, f"the request could not be prepared within {seconds:g} s; try again.", kind=SERVER)
    finally:
        preparing.cancel()


def _bytes(arguments: Mapping[str, Any]) -> int:
    """Return how many bytes a request that waits holds, about."""
    items = [item for asked, _ in arguments["history"] for item in asked or ()]
    items += arguments["message"] if isinstance(arguments["message"], list) else [{"text": arguments["message"]}]
    texts = [item[kind] for item in items for kind in ("text", "tool_result") if kind in item]
    texts += [said or "" for _, said in arguments["history"]]
    pictures = [item["image"] for item in items if isinstance(item.get("image"), Picture)]
    for clip in (item["video"] for item in items if isinstance(item.get("video"), Clip)):
        pictures += clip.frames
    return sum(2 * len(text) for text in texts) + sum(int(each.pixels.nbytes) for each in pictures)


def _logged(error: Exception, request_id: str) -> ApiError:
    answer = from_engine(error)
    if answer.status >= 500:
        LOGGER.error("computation failed", exc_info=error, extra={"fields": {"id": request_id}})
    return answer
