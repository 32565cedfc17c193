"""The command `qwenvl serve`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import gc
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.server.configuration import PREFIX, Configuration
from qwenvl_edge.server.settings import ServerLimits, ServerSettings, read_api_keys

if TYPE_CHECKING:
    import uvicorn

    from qwenvl_edge.engine import QwenVLEngine

_SWITCH_S = 2e-4  # after which a thread that computes in Python lets others in; by default 5 ms
_LATE_S = 5.0  # beyond a limit, after which a connection is closed without an answer
_SOURCES = f"An option that is not given is taken from {PREFIX}PORT and the like, then from the file of --config."
_LIMITS = {
    "rows": "answers at once",
    "queue": "requests that wait beyond those; more get 429",
    "body_bytes": "largest request",
    "memory_bytes": "bytes of all requests that arrive or wait",
    "pictures": "most pictures in a request",
    "picture_pixels": "largest picture",
    "clips": "most clips in a request",
    "frames": "most frames taken of a clip",
    "clip_pixels": "pixels of all frames of a clip that have to be decoded",
    "messages": "most messages in a request",
    "tokens": "longest answer; one that asks for more is cut there",
    "connections": "open connections; one more closes the one that idled longest",
    "seconds": "time from a request's arrival to its answer's end",
    "read_seconds": "time for a request's body to arrive, and for its answer to be read",
    "header_seconds": "time for a request's header to arrive",
    "idle_seconds": "time for a new connection to begin a request",
    "drain_seconds": "time for running answers when the server stops",
}


def add_serve(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("serve", help="answer over HTTP, as OpenAI's chat completions do", epilog=_SOURCES)
    options = Configuration(parser)
    options.add("bundle", nargs="?", type=Path, metavar="BUNDLE", help="a bundle, made by qwenvl export")
    options.add("--config", type=Path, metavar="FILE", help="a TOML file of options: `port = 8001` (default: none)")
    options.add("--host", default="127.0.0.1", metavar="ADDRESS", help="what to bind (default 127.0.0.1)")
    options.add("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    options.add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="one of its lines is needed with every request (default: none)",
    )
    options.add("--model-name", metavar="NAME", help="the name that requests give (default: the folder's)")
    options.add(
        "--allow-url-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures from there; repeatable (default: from nowhere)",
    )
    options.add(
        "--allow-path",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="read file: URLs there; repeatable (default: nowhere)",
    )
    options.add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="answer web pages from there; repeatable (default: its own)",
    )
    options.add("--keep-order", action="store_true", help="leave pictures after the words where a client puts them")
    options.add(
        "--hide-cached", action="store_true", help="do not tell how many tokens were computed for earlier answers"
    )
    options.add("--log-prompts", action="store_true", help="write words and answers to the log")
    options.add(
        "--log-format",
        choices=("auto", "json", "text"),
        default="auto",
        help="auto (default): text on a terminal, else JSON",
    )
    options.add("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    options.add("--max-context", type=int, metavar="N", help="longest conversation in tokens (default: the model's)")
    options.add("--backend", default="auto", metavar="B", help="auto (default), tensorrt or onnxruntime")
    options.add("--device", default="auto", metavar="D", help="auto (default), cuda or cpu")
    for field in dataclasses.fields(ServerLimits):
        option = f"--max-{field.name.replace('_', '-')}"
        text = f"{_LIMITS[field.name]} (default {field.default:,.12g})"
        options.add(option, type=type(field.default), default=field.default, metavar="N", help=text)
    parser.set_defaults(run=functools.partial(_serve, options))


def _serve(options: Configuration, given: argparse.Namespace) -> int:
    arguments = options.complete(given)
    if arguments.bundle is None:
        raise QwenVLError(f"name the bundle to serve: qwenvl serve BUNDLE, {PREFIX}BUNDLE, or `bundle` in the file.")
    limits = ServerLimits(
        **{field.name: getattr(arguments, f"max_{field.name}") for field in dataclasses.fields(ServerLimits)}
    )
    settings = ServerSettings(
        host=arguments.host,
        port=arguments.port,
        model_name=arguments.model_name or arguments.bundle.resolve().name,
        api_keys=() if arguments.api_key_file is None else read_api_keys(arguments.api_key_file),
        origins=tuple(origin.lower().rstrip("/") for origin in arguments.allow_origin),
        url_hosts=tuple(arguments.allow_url_host),
        picture_folders=tuple(arguments.allow_path),
        keep_order=arguments.keep_order,
        tell_cached=not arguments.hide_cached,
        log_prompts=arguments.log_prompts,
        log_format=arguments.log_format,
        limits=limits,
    )
    check_installed()
    from qwenvl_edge.engine import QwenVLEngine

    engine = QwenVLEngine(
        arguments.bundle,
        threads=arguments.threads,
        max_context=arguments.max_context,
        backend=arguments.backend,
        device=arguments.device,
    )
    serve(engine, settings)
    return 0


def check_installed() -> None:
    """Raise QwenVLError where the extra "server" is missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"the server needs {error.name}, which is not installed; run: pip install 'qwenvl-edge[server]'"
        ) from error


def serve(engine: QwenVLEngine, settings: ServerSettings) -> None:
    """Answer requests until the process gets SIGINT or SIGTERM, then finish what runs; a second one ends it at once.

    Raises:
        QwenVLError: the address cannot be bound.
    """
    from qwenvl_edge.server.logs import Logging, log
    from qwenvl_edge.server.stopping import Server, sigterm_last

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "another program listens there; give another --port" if taken else error.strerror or str(error)
        raise QwenVLError(f"cannot listen on {settings.host}:{settings.port}: {reason}.") from None
    host, port = listening.getsockname()[:2]
    server = Server(uvicorn_config(engine, settings))
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()  # what is there now stays; looking through it again and again takes the time of fifty tokens
    with sigterm_last(server), Logging(settings.log_format):
        log("serving", model=settings.model_name, runs=engine.describe(), context=engine.max_context)
        shown = reachable(host)
        log("listening", url=f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/", host=host)
        server.run(sockets=[listening])


def reachable(host: str) -> str:
    """Return an address at which a bound one can be opened: of 0.0.0.0 and :: one that this machine has."""
    others = {"0.0.0.0": (socket.AF_INET, "192.0.2.1", "127.0.0.1"), "::": (socket.AF_INET6, "2001:db8::1", "::1")}
    if host not in others:
        return host
    family, elsewhere, own = others[host]
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))  # sends nothing, but chooses the way there
        own = probe.getsockname()[0]
    return own


def uvicorn_config(engine: QwenVLEngine, settings: ServerSettings) -> uvicorn.Config:
    """Return the configuration with which uvicorn serves one engine."""
    import uvicorn

    from qwenvl_edge.server.app import Server
    from qwenvl_edge.server.connections import Connections, PhaseLimits, descriptors
    from qwenvl_edge.server.page import Page

    limits = settings.limits
    phases = PhaseLimits(
        idle=limits.idle_seconds,
        header=limits.header_seconds,
        body=limits.read_seconds + _LATE_S,
        answer=limits.seconds + limits.read_seconds + _LATE_S,
    )
    connections = Connections(descriptors(limits.connections), phases)
    batcher = engine.batcher(rows=limits.rows)
    return uvicorn.Config(
        Server(
            batcher,
            engine.bundle.manifest,
            settings,
            max_context=engine.max_context,
            page=Page(engine.bundle),
        ).app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=connections.protocol(),
        ws="none",
        timeout_graceful_shutdown=int(limits.drain_seconds),
    )
