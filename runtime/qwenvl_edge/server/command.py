"""The command `qwenvl serve`."""

from __future__ import annotations

import argparse
import dataclasses
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say
from qwenvl_edge.server.settings import Limits, Settings, read_api_key

if TYPE_CHECKING:
    import uvicorn

    from qwenvl_edge.engine import QwenVLEngine

_SPARE_CONNECTIONS = 256  # idle ones, and those that only look; more get a bare 503 before anything is read
_LIMITS = {
    "rows": "answers at once",
    "queue": "requests that wait beyond those; more get 429",
    "body_bytes": "largest request",
    "pictures": "most pictures in a request",
    "picture_pixels": "largest picture",
    "messages": "most messages in a request",
    "tokens": "longest answer that may be asked for",
    "seconds": "time from a request's arrival to its answer's end",
    "read_seconds": "time for a request's body to arrive",
    "drain_seconds": "time for running answers when the server stops",
}


def add_serve(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("serve", help="answer over HTTP, as OpenAI's chat completions do")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="what to bind (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first line is needed with every request")
    parser.add_argument("--model-name", metavar="NAME", help="the name that requests give (default: the bundle's)")
    parser.add_argument(
        "--allow-url-host", action="append", default=[], metavar="HOST", help="fetch pictures from there; repeatable"
    )
    parser.add_argument(
        "--allow-path", action="append", default=[], type=Path, metavar="DIR", help="read file: URLs there; repeatable"
    )
    parser.add_argument("--log-prompts", action="store_true", help="write words and answers to the log")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest conversation in tokens")
    parser.add_argument("--backend", default="auto", metavar="B", help="auto (default), tensorrt or onnxruntime")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cuda or cpu")
    for field in dataclasses.fields(Limits):
        option = f"--max-{field.name.replace('_', '-')}"
        text = f"{_LIMITS[field.name]} (default {field.default:g})"
        parser.add_argument(option, type=type(field.default), default=field.default, metavar="N", help=text)
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    limits = Limits(**{field.name: getattr(arguments, f"max_{field.name}") for field in dataclasses.fields(Limits)})
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        model_name=arguments.model_name or arguments.bundle.resolve().name,
        api_key=None if arguments.api_key_file is None else read_api_key(arguments.api_key_file),
        url_hosts=tuple(arguments.allow_url_host),
        picture_folders=tuple(arguments.allow_path),
        log_prompts=arguments.log_prompts,
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


def serve(engine: QwenVLEngine, settings: Settings) -> None:
    """Answer requests until the process gets SIGINT or SIGTERM, then finish what runs.

    Raises:
        QwenVLError: the address cannot be bound.
    """
    import uvicorn

    from qwenvl_edge.server.logs import configure

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise QwenVLError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.") from None
    configure()
    host, port = listening.getsockname()[:2]
    say(f"qwenvl: http://{f'[{host}]' if ':' in host else host}:{port}/", to=sys.stderr)
    uvicorn.Server(uvicorn_config(engine, settings)).run(sockets=[listening])


def uvicorn_config(engine: QwenVLEngine, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves one engine."""
    import uvicorn

    from qwenvl_edge.server.app import Server

    return uvicorn.Config(
        Server(engine.batcher(rows=settings.limits.rows), engine.bundle.manifest, settings).app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.limits.drain_seconds),
        limit_concurrency=_SPARE_CONNECTIONS + 2 * (settings.limits.rows + settings.limits.queue),
    )
