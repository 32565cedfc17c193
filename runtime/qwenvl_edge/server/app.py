"""The routes.

POST /v1/chat/completions, /v1/completions and /v1/responses, GET /v1/models, /health, /healthz, /readyz, /metrics,
/openapi.json, and the page at /.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qwenvl_edge import __version__
from qwenvl_edge.bundle.manifest import Manifest
from qwenvl_edge.server import openapi
from qwenvl_edge.server.answering import Answering
from qwenvl_edge.server.chat import ask_chat
from qwenvl_edge.server.completions import ask_completion
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.exchange import Exchanges, Reader
from qwenvl_edge.server.guard import Guard
from qwenvl_edge.server.logs import log
from qwenvl_edge.server.metrics import CONTENT_TYPE, Metrics
from qwenvl_edge.server.page import Page
from qwenvl_edge.server.responses import ask_response
from qwenvl_edge.server.service import Service
from qwenvl_edge.server.settings import ServerSettings
from qwenvl_edge.server.stored import StoredConversations
from qwenvl_edge.server.translate import Translator
from qwenvl_edge.server.workers import Workers

_ELSEWHERE = ("/api/", "/v1/messages", "/v1/embeddings", "/v1/images", "/v1/audio", "/v1/assistants", "/completion")


class Server:
    """The routes in front of the engines of one bundle; `app` is the ASGI application.

    max_context: tokens of a conversation, as the engines have it; None: the model's own. page: the one at /; None: one
    without examples.
    """

    def __init__(
        self,
        batcher: Answering,
        manifest: Manifest,
        settings: ServerSettings,
        *,
        max_context: int | None = None,
        page: Page | None = None,
    ) -> None:
        self._settings = settings
        self._created = int(time.time())
        self._batcher = batcher
        self._max_context = max_context or manifest.model.max_position_embeddings
        self._workers = Workers()
        self._translator = Translator(settings, manifest, self._workers)
        self._stored = StoredConversations()
        self._metrics = Metrics(self._batcher)
        self._service: Service | None = None
        self._exchanges: Exchanges | None = None
        api = FastAPI(title="Qwen-VL Edge", version=__version__, docs_url=None, redoc_url=None, lifespan=self._lifespan)
        self._add_routes(api)
        (page or Page(None)).add_to(api)
        openapi.describe(api, settings.model_name)
        api.add_exception_handler(ApiError, _api_error)
        api.add_exception_handler(HTTPException, _http_error)
        routes = frozenset(getattr(route, "path", "") for route in api.routes)
        self.app = Guard(api, settings, self._metrics, routes)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self._service = Service(self._batcher, self._settings.limits, self._metrics)
        self._exchanges = Exchanges(self._settings, self._workers, self._service)
        self._batcher.seek_by(self._translator.seek_by(asyncio.get_running_loop()))
        log("ready", model=self._settings.model_name)
        yield
        log("stopping", running=self._batcher.running, waiting=self._batcher.waiting)
        await self._service.close()
        await self._translator.close()
        self._workers.close()
        log("stopped")

    def _add_routes(self, api: FastAPI) -> None:
        for path, description, tell in (
            ("/healthz", openapi.HEALTH, self._health),
            ("/health", openapi.HEALTH, self._health),
            ("/readyz", openapi.READY, self._ready),
        ):
            api.get(path, **description)(tell)
            api.head(path, include_in_schema=False)(tell)  # as balancers ask
        api.get("/metrics", **openapi.METRICS)(self._show_metrics)
        api.get("/v1/models", **openapi.MODELS)(self._models)
        api.get("/v1/models/{model:path}", **openapi.MODEL)(self._model)
        translator, stored = self._translator, self._stored
        for path, description, read in (
            ("/v1/chat/completions", openapi.CHAT, lambda raw, salt: ask_chat(raw, salt, translator)),
            ("/v1/completions", openapi.COMPLETION, lambda raw, salt: ask_completion(raw, salt, translator)),
            ("/v1/responses", openapi.RESPONSE, lambda raw, salt: ask_response(raw, salt, translator, stored)),
        ):
            api.post(path, **description)(self._answering(read))

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
        return {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "qwenvl-edge",
            "max_model_len": self._max_context,
            "context_length": self._max_context,
            "max_output_tokens": min(self._settings.limits.tokens, self._max_context),
            "input_modalities": ["text", "image", *(["video"] if self._translator.abilities.clips else [])],
            "output_modalities": ["text"],
        }

    def _answering(self, read: Reader) -> Callable[[Request], Awaitable[Response]]:
        """Return the route of a protocol that `read` reads."""

        async def answer(request: Request) -> Response:
            assert self._exchanges is not None
            return await self._exchanges.answer(request, read)

        return answer


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        known = "POST /v1/chat/completions, /v1/responses, /v1/completions; GET /v1/models"
        elsewhere = request.url.path.startswith(_ELSEWHERE)
        reason = "this server speaks OpenAI's protocol only" if elsewhere else "there is no such route"
        return ApiError(404, f"{reason}; it has {known}.", code="route_not_found").response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        reason = f"this route does not take {request.method}; it takes {allowed}."
        return ApiError(405, reason, headers=error.headers).response()
    return ApiError(error.status_code, f"{error.detail}.", headers=error.headers).response()
