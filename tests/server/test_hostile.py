"""Nothing that one client sends ends the service, stops it, or costs more than its share."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from qwenvl_edge.constraints.matcher import Matcher
from qwenvl_edge.server.connections import descriptors
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.memory import Budget
from support.served import WAIT_S, ask, data_uri, post, serving, until

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
QUICK = 20.0
ROOT = Path(__file__).parents[2]


def connected(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def plain(address):
    """A question of somebody who does nothing wrong."""
    started = time.monotonic()
    assert httpx.post(f"{address}/v1/chat/completions", json=ask(max_tokens=2), timeout=WAIT_S).status_code == 200
    assert time.monotonic() - started < QUICK


def form(schema, **options):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return ask("x", response_format=wanted, **options)


def crossed(count, title=""):
    patterns = [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(count)]
    each = [{"properties": {"a": pattern}} for pattern in patterns]
    return {"type": "object", "allOf": each, "required": ["a"], "title": title}


# Forms


def test_a_form_that_cannot_be_completed_costs_little(http, address):
    schema = {"type": "null"}
    for _ in range(3):
        schema = {"type": "array", "minItems": 1000, "items": schema}
    found = post(http, form(schema, max_tokens=8), timeout=WAIT_S).json()["choices"][0]
    assert found["finish_reason"] == "length" and found["message"]["qwenvl"]["complete"] is False
    plain(address)


def test_others_are_answered_while_the_end_of_a_form_is_sought(http, address, monkeypatch):
    sought, found, closing = threading.Event(), threading.Event(), Matcher.closing

    def slow(matcher, *rest):
        sought.set()
        assert found.wait(WAIT_S)
        return closing(matcher, *rest)

    monkeypatch.setattr(Matcher, "closing", slow)
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(post, http, form({"type": "array", "minItems": 3}, max_tokens=2), timeout=WAIT_S)
        try:
            assert sought.wait(WAIT_S)
            plain(address)
            assert not cut.done()
        finally:
            found.set()
        choice = cut.result().json()["choices"][0]
        assert choice["finish_reason"] == "length" and len(json.loads(choice["message"]["content"])) == 3


def test_a_form_that_compiles_for_ever_is_refused_and_remembered(http):
    first = post(http, form(crossed(24)), timeout=WAIT_S)
    while first.status_code == 503:  # the machine has other work, so there was no verdict
        first = post(http, form(crossed(24)), timeout=WAIT_S)
    assert first.status_code == 400 and first.json()["error"]["code"] == "constraint_too_complex"
    started = time.monotonic()
    assert post(http, form(crossed(24)), timeout=WAIT_S).status_code == 400
    assert time.monotonic() - started < QUICK / 4
    assert post(http, form({"type": "array"}, max_tokens=4)).status_code == 200  # a new process was started


def test_others_are_answered_while_forms_are_tried(address):
    def send(number):
        with contextlib.suppress(httpx.TransportError):
            body = form(crossed(24, str(number)))
            httpx.post(f"{address}/v1/chat/completions", json=body, timeout=3)  # leaves before it is answered

    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(send, number) for number in range(6)]
        plain(address)
        for each in sent:
            each.result()
    plain(address)


# Bodies


@pytest.mark.parametrize("item", ["{}", "1", '{"role":"user"}', "[[]]", '{"role":"user","content":[{}]}'])
def test_many_wrong_messages_are_not_validated(http, address, item):
    body = f'{{"model":"nano","messages":[{",".join([item] * 400_000)}]}}'
    with ThreadPoolExecutor(1) as pool:
        headers = {"Content-Type": "application/json"}
        sent = pool.submit(http.post, "/v1/chat/completions", content=body, headers=headers)
        for _ in range(5):
            started = time.monotonic()
            assert httpx.get(f"{address}/healthz").status_code == 200
            assert time.monotonic() - started < QUICK / 4
        assert sent.result().status_code == 400


def test_compressed_bodies_are_refused_by_name(http):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = http.post("/v1/chat/completions", content=zlib.compress(b"{}"), headers=headers)
    assert response.status_code == 415 and "Content-Encoding" in response.json()["error"]["message"]


def test_bodies_that_do_not_end_take_no_place(engine):
    with serving(engine, limits={"rows": 1, "queue": 1, "read_seconds": 3}) as address, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(address)) for _ in range(20)]
        for sock in socks:
            sock.sendall(f"{HEAD}Content-Length: 9\r\n\r\n{{".encode())
        time.sleep(0.2)
        plain(address)
        assert all(b" 408 " in sock.recv(4096) for sock in socks)


def test_the_largest_body_on_its_way_makes_room():
    budget, given_up = Budget(100), []
    with budget.hold() as slow, budget.hold() as small, budget.hold() as whole:
        slow.give_up, small.give_up = (lambda: given_up.append("slow")), (lambda: given_up.append("small"))
        slow.set(60), small.set(20)
        whole.set(20)  # all of it is there, so it stays
        small.set(30)
        assert given_up == ["slow"] and budget.held == 50
        with pytest.raises(ApiError, match="as many bytes"):
            whole.set(200)
        whole.set(10)
    assert budget.held == 0


def test_bytes_are_counted_over_all_requests(engine):
    large = ask("x" * 300_000)
    with serving(engine, limits={"memory_bytes": 1_000_000}) as address, connected(address) as slow:
        slow.sendall(f"{HEAD}Content-Length: 950000\r\n\r\n".encode() + b" " * 900_000)
        time.sleep(0.3)
        response = httpx.post(f"{address}/v1/chat/completions", json=large, timeout=WAIT_S)
        assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"
        assert b" 503 " in slow.recv(4096)


def test_long_texts_are_refused_before_they_are_encoded(http, engine, monkeypatch):
    encoded = []
    tokenizer = type(engine._tokenizer)
    plain_encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer,
        "encode",
        lambda self, text, **options: encoded.append(len(text)) or plain_encode(self, text, **options),
    )
    assert post(http, ask("x" * 10_000_000)).status_code == 400
    assert max(encoded, default=0) < 1000


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress((b"\0" + b"\0" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_strips_are_refused(http):
    for size in ((1, 3_000_000), (3_000_000, 1)):
        files = {"a": ("a.png", png(*size), "image/png")}
        body = {"request": json.dumps(ask(url="attachment:a"))}
        started = time.monotonic()
        assert http.post("/v1/chat/completions", data=body, files=files).status_code == 400
        assert time.monotonic() - started < QUICK / 2


# Connections


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


# Keys


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


# Logs


def served(bundle, *options, **streams):
    command = [sys.executable, "-m", "qwenvl_edge.cli", "serve", str(bundle), "--model-name", "nano", "--threads", "1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port), *options], **streams)
    return process, f"http://127.0.0.1:{port}"


def ready(address):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/readyz").status_code == 200


def closed_stderr():
    os.close(2)


@pytest.mark.parametrize("stderr", ["unread", "closed", "full"])
def test_a_log_that_nobody_takes_stops_nothing(engine, stderr, tmp_path):
    if stderr == "full" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    streams = {
        "unread": {"stderr": subprocess.PIPE},
        "closed": {"preexec_fn": closed_stderr},
        "full": {"stderr": Path("/dev/full").open("w") if stderr == "full" else None},  # noqa: SIM115
    }[stderr]
    process, address = served(engine.bundle.path, **streams)
    try:
        until(lambda: process.poll() is not None or ready(address))
        assert process.poll() is None
        with httpx.Client(base_url=address, timeout=WAIT_S) as http:
            for _ in range(1500):  # more lines than a pipe holds
                assert http.get("/healthz").status_code == 200
        plain(address)
    finally:
        process.terminate()
        process.wait(WAIT_S)
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize("form", ["json", "text"])
def test_every_line_of_a_log_has_one_form(engine, form):
    process, address = served(engine.bundle.path, "--log-format", form, stderr=subprocess.PIPE)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()
    try:
        until(lambda: ready(address))
        with connected(address) as sock:
            sock.sendall(b"no HTTP at all\r\n\r\n")
            sock.recv(100)
        with httpx.Client(base_url=address) as http:
            for _ in range(100):
                http.get("/healthz")
    finally:
        process.terminate()
        process.wait(WAIT_S)
        reader.join(WAIT_S)
    if form == "json":
        assert all("event" in json.loads(line) for line in lines)
        assert any(address in json.loads(line).get("url", "") for line in lines)
    else:
        assert all(line[:4].isdigit() and b"{" not in line for line in lines)


# All of it at once


def test_an_honest_client_beside_hostile_ones(engine, tmp_path):
    report = tmp_path / "hostile.json"
    command = [sys.executable, "benchmarks/hostile.py", str(engine.bundle.path), "--minutes", "0.7", "--threads", "4"]
    command += ["--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == found["lost"] == 0 and found["requests"] > 20 and found["hostile"] > 20
    assert found["peak_mb"] < 2500
