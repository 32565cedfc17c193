"""The Ray Serve application: `serve run qwenvl_edge.fleet.ray_serve:app bundle=BUNDLE replicas=2`."""

# No postponed annotations: Ray reads the one of `app` to check the options.

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.types import ASGIApp

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.fleet.dispatch import Dispatcher, Item, Taken
from qwenvl_edge.fleet.session import Sessions
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.server.app import Server
from qwenvl_edge.server.logs import configure
from qwenvl_edge.server.metrics import Metrics
from qwenvl_edge.server.page import Page
from qwenvl_edge.server.service import Service, Thought
from qwenvl_edge.server.settings import ServerLimits, ServerSettings, read_api_keys
from qwenvl_edge.server.trials import Trials

_SPARE = 256  # requests of a front that only look, beside those that are answered or wait
_ROUTER = "qwenvl_edge.fleet.routing.PictureRouter"


class Options(BaseModel):
    """Options of the application, given by `serve run ... NAME=VALUE` or under `args` of a configuration file.

    bundle: the folder, at this path on every machine. replicas: engines, the least of them if max_replicas is more;
    then their number follows the load, `requests_per_replica` each. autoscaling: how soon, as fields of Ray Serve's
    AutoscalingConfig (upscale_delay_s, downscale_delay_s, ...). fronts: processes that take requests in.
    cpus, gpus: what Ray reserves for a replica; it computes with as many threads.
    model_name, api_key_file, allow_url_host, allow_path, log_prompts, max_context, backend, device: as `qwenvl serve`.
    limits: fields of server.settings.ServerLimits; `rows` is a replica's, `queue` a front's.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: Path
    replicas: int = Field(2, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    requests_per_replica: float | None = Field(None, gt=0)
    autoscaling: dict[str, float] = {}
    fronts: int = Field(1, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    model_name: str | None = None
    api_key_file: Path | None = None
    allow_url_host: list[str] = []
    allow_path: list[Path] = []
    log_prompts: bool = False
    max_context: int | None = None
    backend: str = "auto"
    device: str = "auto"
    limits: dict[str, float] = {}

    @cached_property
    def most_replicas(self) -> int:
        """The largest number of replicas."""
        return max(self.replicas, self.max_replicas or 0)

    @cached_property
    def replica_limits(self) -> ServerLimits:
        """Limits as given; raises QwenVLError."""
        known = {name: type(value) for name, value in vars(ServerLimits()).items()}
        for name in self.limits:
            if name not in known:
                raise QwenVLError(f"there is no limit {name!r}; known are {', '.join(known)}.")
        return ServerLimits(**{name: known[name](value) for name, value in self.limits.items()})

    def autoscaling_config(self) -> AutoscalingConfig:
        """Return Ray Serve's configuration; raises QwenVLError where a field is unknown or out of its range."""
        own = ("min_replicas", "max_replicas", "target_ongoing_requests", "initial_replicas", "policy")
        for name in self.autoscaling:
            if name in own or name not in AutoscalingConfig.model_fields:
                known = sorted(set(AutoscalingConfig.model_fields) - {*own, "aggregation_function"})
                raise QwenVLError(f"autoscaling has {name!r}; known are {', '.join(known)}.")
        try:
            return AutoscalingConfig(
                min_replicas=self.replicas,
                max_replicas=self.most_replicas,
                target_ongoing_requests=self.requests_per_replica or self.replica_limits.rows / 2,
                **self.autoscaling,
            )
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise QwenVLError(f"autoscaling cannot be used: {reason}.") from None

    def settings(self) -> ServerSettings:
        """Return the settings of a front, with the rows of all replicas. Reads the key; raises QwenVLError."""
        rows = self.replica_limits.rows * self.most_replicas
        return ServerSettings(
            model_name=self.model_name or self.bundle.resolve().name,
            api_keys=() if self.api_key_file is None else read_api_keys(self.api_key_file),
            url_hosts=tuple(self.allow_url_host),
            picture_folders=tuple(self.allow_path),
            log_prompts=self.log_prompts,
            limits=dataclasses.replace(self.replica_limits, rows=rows),
        )


class Engine:
    """A replica: one engine that answers the requests it is sent together."""

    def __init__(self, options: Options) -> None:
        configure()
        self._engine = QwenVLEngine(
            options.bundle,
            threads=max(1, int(options.cpus)),
            max_context=options.max_context,
            backend=options.backend,
            device=options.device,
        )
        self._limits = options.replica_limits
        self._batcher = self._engine.batcher(rows=self._limits.rows)
        self._trials = Trials()

    @cached_property
    def _service(self) -> Service:  # made in a call: it needs the event loop
        self._batcher.seek_by(functools.partial(self._trials.seek, loop=asyncio.get_running_loop()))
        return Service(self._batcher, self._limits, Metrics(self._batcher))

    async def answer(self, key: str, arguments: dict[str, Any], stream: bool) -> AsyncIterator[Item]:
        """Answer a request; see dispatch.Item. `key` is for the router. Its end, whatever it is, frees the row."""
        yield Taken(serve.get_replica_context().replica_id.unique_id)
        token = CancelToken()
        try:
            answer = await self._service.submit(arguments, token, stream=stream)
            async for text, thought, calls, logprobs in answer.pieces():
                if logprobs:
                    yield logprobs
                if thought:
                    yield Thought(thought)
                if text:
                    yield text
                for call in calls:
                    yield call
            reply = await answer.reply()
            yield dataclasses.replace(reply, pictures=(), history=())  # whoever asked has them
        except QwenVLError as error:
            yield error
        finally:
            token.cancel()

    def check_health(self) -> None:
        """Have Ray replace a replica whose batcher failed."""
        if self._batcher.closed:
            raise RuntimeError("the batcher has ended; the log says why.")


def _front(options: Options) -> serve.Deployment:
    """Return the deployment that takes HTTP requests in."""

    def build() -> ASGIApp:  # in a front's process, on its event loop
        configure()
        engines = serve.get_deployment_handle(Engine.__name__, app_name=serve.get_replica_context().app_name)
        bundle = Bundle.open(options.bundle)
        server = Server(
            Dispatcher(engines),
            bundle.manifest,
            options.settings(),
            max_context=options.max_context,
            page=Page(bundle),
        )
        return Sessions(server.app)

    limits = options.settings().limits
    configured = serve.deployment(
        name="Front",
        num_replicas=options.fronts,
        max_ongoing_requests=limits.rows + limits.queue + _SPARE,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=limits.drain_seconds,
    )
    return configured(serve.ingress(build)())


def _engines(options: Options) -> serve.Deployment:
    """Return the deployment of the replicas."""
    limits = options.replica_limits
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.most_replicas > options.replicas:
        scale = {
            "num_replicas": None,
            "autoscaling_config": options.autoscaling_config(),
        }
    configured = serve.deployment(
        **scale,
        max_ongoing_requests=limits.rows + max(1, limits.rows // 4),  # a few more, so that no row waits for the router
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        graceful_shutdown_timeout_s=limits.drain_seconds,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER, max_backoff_s=0.1),
    )
    return configured(Engine)


def app(options: Options) -> serve.Application:
    """Return the application: fronts with the routes of `qwenvl serve`, and the replicas that they ask.

    Raises:
        QwenVLError: the bundle is not there, a limit is unknown or out of range, the key cannot be read.
    """
    bundle = Bundle.open(options.bundle).path  # what is wrong is told here, not by every replica
    options = options.model_copy(update={"bundle": bundle.resolve()})
    return _front(options).bind(_engines(options).bind(options))
