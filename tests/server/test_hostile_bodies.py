"""Bodies that are too much or never whole are refused before anything is made of them."""

import contextlib
import json
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.memory import Budget
from support.hostile import HEAD, QUICK, connected, plain
from support.served import WAIT_S, ask, post, serving


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


def test_many_escaped_characters_are_not_read(http):
    content = '{"model":"nano","messages":[{"role":"user","content":"' + "\\u1112" * 1_000_001 + '"}]}'
    response = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and "1,000,001 escaped characters" in response.json()["error"]["message"]


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
