"""How much is taken on, and what happens when it is too much."""

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.server.settings import ServerLimits
from support.served import WAIT_S, ask, data_uri, metric, post, serving, until


def code(response):
    return response.status_code, response.json()["error"]["code"]


def test_limits_are_checked():
    for name in ("rows", "tokens", "seconds", "body_bytes"):
        with pytest.raises(QwenVLError, match=name):
            ServerLimits(**{name: 0})
    assert ServerLimits(queue=0).queue == 0


def test_what_is_too_much_is_refused(engine):
    limits = {"body_bytes": 800_000, "pictures": 1, "picture_pixels": 10_000, "messages": 2, "tokens": 5}
    with serving(engine, limits=limits) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        assert post(client, ask("x" * 800_000)).status_code == 413

        def body():
            for _ in range(100):
                yield b" " * 10_000

        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/chat/completions", content=body(), headers=headers).status_code == 413
        assert "pixels" in post(client, ask(url=data_uri())).json()["error"]["message"]
        two = {"type": "image_url", "image_url": {"url": "data:,x"}}
        message = {"role": "user", "content": [two, two]}
        assert "2 pictures, more than 1" in post(client, {**ask(), "messages": [message]}).json()["error"]["message"]
        many = {**ask(), "messages": ask()["messages"] * 3}
        assert "3 messages, more than 2" in post(client, many).json()["error"]["message"]
        cut = post(client, ask(max_tokens=6)).json()
        assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 5
        assert post(client, ask()).json()["usage"]["completion_tokens"] <= 5


def test_slow_requests_are_given_up(engine):
    with serving(engine, limits={"read_seconds": 1}) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), WAIT_S) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n"
            head += "Content-Type: application/json\r\n\r\n"
            connection.sendall(head.encode())
            assert b" 408 " in connection.recv(4096)


def test_time_is_limited(engine, endless, slow):
    with serving(engine, limits={"seconds": 1}) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        choice = post(client, ask(logit_bias=endless, max_tokens=1024, frequency_penalty=-1)).json()["choices"][0]
        assert choice["finish_reason"] == "length"


def test_overload_is_refused_and_ends(engine, endless, slow):
    with (
        serving(engine, limits={"rows": 1, "queue": 1}) as address,
        httpx.Client(base_url=address, timeout=WAIT_S) as client,
    ):
        long = ask(logit_bias=endless, max_tokens=1024, stream=True)
        with client.stream("POST", "/v1/chat/completions", json=long) as first:
            lines = first.iter_lines()  # kept: httpx closes the response with it
            next(lines)
            with ThreadPoolExecutor(1) as pool:
                second = pool.submit(
                    httpx.post, f"{address}/v1/chat/completions", json=ask(max_tokens=2), timeout=WAIT_S
                )
                until(lambda: metric(client, "qwenvl_queue_length") == 1)
                third = post(client, ask())
                assert code(third) == (429, "queue_full") and int(third.headers["retry-after"]) >= 1
                lines.close()
                assert second.result(WAIT_S).status_code == 200
        assert post(client, ask(max_tokens=2), timeout=WAIT_S).status_code == 200


def test_clients_that_leave_while_waiting_free_their_place(engine, endless, slow):
    with (
        serving(engine, limits={"rows": 1, "queue": 2}) as address,
        httpx.Client(base_url=address, timeout=WAIT_S) as client,
    ):
        with client.stream(
            "POST", "/v1/chat/completions", json=ask(logit_bias=endless, max_tokens=1024, stream=True)
        ) as first:
            lines = first.iter_lines()  # kept: httpx closes the response with it
            next(lines)
            with pytest.raises(httpx.ReadTimeout):
                post(client, ask(), timeout=httpx.Timeout(WAIT_S, read=0.2))
            until(lambda: metric(client, "qwenvl_queue_length") == 0)
        until(lambda: metric(client, "qwenvl_answers_running") == 0)
