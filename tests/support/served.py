"""A server on the nano model, listening on a port of its own, and what its clients send."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading

import httpx
import pytest

from support.paths import ROOT
from support.patience import PATIENCE_S, until
from support.vocabularies import read_ranks, special_tokens

uvicorn = pytest.importorskip("uvicorn", reason="the server needs its extra")

from qwenvl_edge.server.command import uvicorn_config  # noqa: E402
from qwenvl_edge.server.settings import ServerLimits, ServerSettings  # noqa: E402

NANO = ROOT / "models" / "nano"
PICTURE = NANO / "demo.png"
WAIT_S = PATIENCE_S


@contextlib.contextmanager
def serving(engine, *, limits=None, **settings):
    """Run a server in a thread; yields its address."""
    config = uvicorn_config(
        engine, ServerSettings(port=0, model_name="nano", limits=ServerLimits(**(limits or {})), **settings)
    )
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        listening.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_up(url):
    """Whether something answers there with 200."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def data_uri(path=PICTURE):
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def ask(words="Describe the picture.", *, url=None, **options):
    """The body of a request."""
    parts = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    content = [*parts, {"type": "text", "text": words}]
    return {"model": "nano", "messages": [{"role": "user", "content": content}], "temperature": 0, **options}


def post(http, body, **options):
    return http.post("/v1/chat/completions", json=body, **options)


def endless_bias(bundle):
    """A logit_bias for bundles of models/nano under which no answer ends by itself."""
    ids = special_tokens(len(read_ranks(bundle.file(bundle.manifest.tokenizer))))
    return {str(ids[token]): -100 for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")}


def metric(http, name):
    """The value of one line of /metrics."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
