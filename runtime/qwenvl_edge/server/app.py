"""The routes.

POST /v1/chat/completions, GET /v1/models, /healthz, /readyz, /metrics, /openapi.json, and the page at /.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from qwenvl_edge import __version__
from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.replies.reply import Reply
from qwenvl_edge.server import openapi
from qwenvl_edge.server.errors import ApiError, from_engine
from qwenvl_edge.server.guard import Guard
from qwenvl_edge.server.intake import ClientDisconnect, read_request
from qwenvl_edge.server.logs import LOGGER, log
from qwenvl_edge.server.metrics import CONTENT_TYPE, Metrics
from qwenvl_edge.server.render import DONE, Renderer, event
from qwenvl_edge.server.schema import ChatRequest
from qwenvl_edge.server.service import Answer, Answering, Service
from qwenvl_edge.server.settings import Settings
from qwenvl_edge.server.translate import Translator

_STATIC = Path(__file__).parent / "static"
_CLIENT_CLOSED = 499  # nobody reads it; the log does


class Server:
    """The routes in front of who computes the answers of one bundle; `app` is the ASGI application."""

    def __init__(self, batcher: Answering, manifest: Manifest, settings: Settings) -> None:
        self._settings = settings
        self._created = int(time.time())
        self._batcher = batcher
        default = manifest.generation.max_new_tokens
        self._translator = Translator(settings, manifest.model, default_tokens=default)
        self._metrics = Metrics(self._batcher)
        self._service: Service | None = None
        api = FastAPI(title="Qwen-VL Edge", version=__version__, docs_url=None, redoc_url=None, lifespan=self._lifespan)
        self._add_routes(api)
        openapi.describe(api, settings.model_name)
        api.add_exception_handler(ApiError, _api_error)
        api.add_exception_handler(HTTPException, _http_error)
        routes = frozenset(getattr(route, "path", "") for route in api.routes)
        self.app = Guard(api, settings, self._metrics, routes)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._service = Service(self._batcher, self._settings.limits, self._metrics)
        log("ready", model=self._settings.model_name)
        yield
        log("stopping", running=self._batcher.running, waiting=self._batcher.waiting)
        await self._service.close()
        log("stopped")

    def _add_routes(self, api: FastAPI) -> None:
        api.get("/healthz", **openapi.HEALTH)(self._health)
        api.get("/readyz", **openapi.READY)(self._ready)
        api.get("/metrics", **openapi.METRICS)(self._show_metrics)
        api.get("/v1/models", **openapi.MODELS)(self._models)
        api.get("/v1/models/{model}", **openapi.MODEL)(self._model)
        api.post("/v1/chat/completions", **openapi.CHAT)(self._chat)
        for path, name in (("/", "index.html"), ("/static/app.js", "app.js"), ("/static/style.css", "style.css")):
            api.get(path, include_in_schema=False)(_file(_STATIC / name))

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def _ready(self) -> JSONResponse:
        ready = self._service is not None and self._service.ready
        return JSONResponse({"status": "ready" if ready else "stopping"}, 200 if ready else 503)

    async def _show_metrics(self) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._entry()]}

    async def _model(self, model: str) -> dict[str, Any]:
        if model != self._settings.model_name:
            raise ApiError(
                404, "the model is unknown; GET /v1/models lists them.", param="model", code="model_not_found"
            )
        return self._entry()

    def _entry(self) -> dict[str, Any]:
        name = self._settings.model_name
        return {"id": name, "object": "model", "created": self._created, "owned_by": "qwenvl-edge"}

    async def _chat(self, request: Request) -> Response:
        assert self._service is not None
        request_id = request.state.request_id
        with contextlib.ExitStack() as place:
            token = place.enter_context(self._service.admit())
            try:
                chat, answer = await self._begin(request, token)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_CLOSED)
            watch = asyncio.create_task(_cancel_when_gone(request, token))
            place.callback(watch.cancel)
            renderer = Renderer(chat.model)
            if chat.stream:
                events = self._events(chat, answer, renderer, request_id)
                return _EventStream(events, place.pop_all())
            reply = await self._reply(chat, answer, request_id)
            return JSONResponse(renderer.completion(reply))

    async def _begin(self, request: Request, token: CancelToken) -> tuple[ChatRequest, Answer]:
        """Read a request and queue it; raises ApiError."""
        assert self._service is not None
        chat, attachments = await read_request(request, self._settings.limits)
        try:
            arguments = await asyncio.to_thread(self._translator.arguments, chat, attachments)
            return chat, await self._service.submit(arguments, token, stream=chat.stream)
        except ApiError:
            raise
        except Exception as error:
            raise _logged(error, request.state.request_id) from None

    async def _reply(self, chat: ChatRequest, answer: Answer, request_id: str) -> Reply:
        try:
            reply = await answer.reply()
        except Exception as error:
            raise _logged(error, request_id) from None
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
            **(_words(chat, reply) if self._settings.log_prompts else {}),
        )
        return reply

    async def _events(
        self, chat: ChatRequest, answer: Answer, renderer: Renderer, request_id: str
    ) -> AsyncIterator[bytes]:
        yield renderer.first()
        async for piece in answer.pieces():
            yield renderer.piece(piece)
        try:
            reply = await self._reply(chat, answer, request_id)
        except ApiError as error:  # the status is sent already
            yield event(error.body)
            return
        yield renderer.last(reply)
        if chat.stream_options is not None and chat.stream_options.include_usage:
            yield renderer.usage(reply)
        yield DONE


class _EventStream(StreamingResponse):
    """Server-sent events that keep a request's place until they end, however that comes about."""

    def __init__(self, events: AsyncIterator[bytes], place: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def _cancel_when_gone(request: Request, token: CancelToken) -> None:
    """End the answer of a client that went away; its row goes to the next one."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    token.cancel()


def _words(chat: ChatRequest, reply: Reply) -> dict[str, Any]:
    """What was said, without the pictures."""
    said = chat.model_dump(include={"messages"}, exclude_none=True)["messages"]
    for message in said:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            part.pop("image_url", None)
    return {"messages": said, "answer": reply.raw_text}


def _logged(error: Exception, request_id: str) -> ApiError:
    answer = from_engine(error)
    if answer.status >= 500:
        LOGGER.error("computation failed", exc_info=error, extra={"fields": {"id": request_id}})
    return answer


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(path)

    return send


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{error.detail}.", headers=error.headers).response()
