"""Connections that wait for ever make room, and what is kept for one key tells others nothing."""

import contextlib
import json
import socket
import time

import httpx
import pytest

from qwenvl_edge.server.connections import descriptors
from support.hostile import HEAD, connected, plain
from support.served import WAIT_S, ask, data_uri, post, serving, until


def test_idle_connections_and_half_headers_are_closed(engine):
    with serving(engine, limits={"idle_seconds": 1, "header_seconds": 1}) as address:
        with connected(address) as idle, connected(address) as half, connected(address) as dripping:
            half.sendall(HEAD.encode())
            started = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - started < WAIT_S:
                    dripping.sendall(b"G")
                    time.sleep(0.1)
            for sock in (idle, half):
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(10) == b""
        plain(address)


def test_an_answer_does_not_wait_for_what_the_client_acknowledges(engine):
    """Nagle's algorithm and delayed acknowledgements together hold the second piece of each answer for 40 ms."""
    times = []
    with serving(engine) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        for _ in range(20):
            started = time.monotonic()
            assert client.get("/healthz").status_code == 200
            times.append(time.monotonic() - started)
    assert min(times[5:]) < 0.03


def test_whoever_idles_longest_makes_room(engine):
    with serving(engine, limits={"connections": 8}) as address, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(address)) for _ in range(30)]
        plain(address)
        with contextlib.suppress(ConnectionResetError):
            assert socks[0].recv(10) == b""


def test_a_busy_connection_is_never_the_one(engine, endless, slow):
    with (
        serving(engine, limits={"connections": 2}) as address,
        httpx.Client(base_url=address, timeout=WAIT_S) as client,
    ):
        body = ask(logit_bias=endless, max_tokens=60, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            for _ in range(5):
                with connected(address) as other:
                    other.sendall(b"x")
            assert "data: [DONE]" in list(lines)


def test_an_answer_that_nobody_reads_ends(engine, endless):
    with serving(engine, limits={"seconds": 1, "read_seconds": 1}) as address:
        body = json.dumps(
            ask(logit_bias=endless, max_tokens=1024, stream=True, logprobs=True, top_logprobs=20)
        ).encode()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                sock = stack.enter_context(connected(address))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: "qwenvl_answers_running 0.0" in httpx.get(f"{address}/metrics").text)
        plain(address)


def test_connections_stay_below_the_limit_of_descriptors():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert descriptors(100) == 100
        assert descriptors(400) == 400  # the soft limit was raised
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nobody_learns_from_cached_tokens_what_others_asked(engine):
    keys = ("correct-horse-battery", "wrong-horse-battery-too")
    with serving(engine, api_keys=keys) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:

        def cached(key, **options):
            body = ask("A question that nobody else would ask?", url=data_uri(), max_tokens=1, **options)
            found = post(http, body, headers={"Authorization": f"Bearer {key}"}).json()
            told = found["choices"][0]["message"]["qwenvl"]
            return found["usage"]["prompt_tokens_details"]["cached_tokens"], told["images_encoded"]

        assert cached(keys[0]) == (0, 1) and cached(keys[1]) == (0, 1)
        assert cached(keys[0])[0] > 64 and cached(keys[1])[0] > 64
        assert cached(keys[0], cache_salt="of one user") == (0, 1)
    with serving(engine, tell_cached=False) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        found = [post(http, ask(url=data_uri(), max_tokens=1)).json() for _ in range(2)][1]
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert not {"reused_tokens", "images_encoded", "ttft_ms"} & found["choices"][0]["message"]["qwenvl"].keys()


def test_pages_of_allowed_origins_may_ask(engine):
    page = "https://chat.example"
    with serving(engine, origins=(page,)) as address, httpx.Client(base_url=address, timeout=WAIT_S) as http:
        asked = post(http, ask(max_tokens=1), headers={"Origin": page})
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == page
        before = http.options("/v1/chat/completions", headers={"Origin": page})
        assert before.status_code == 204 and "POST" in before.headers["access-control-allow-methods"]
        assert post(http, ask(), headers={"Origin": "https://other.example"}).status_code == 403
        assert http.options("/v1/models", headers={"Origin": "https://other.example"}).status_code == 403
