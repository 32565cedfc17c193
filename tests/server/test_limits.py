"""How much is taken on, and what happens when it is too much."""

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.decoding.batcher import Batcher
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


def test_work_on_refused_requests_counts_for_their_client(engine, monkeypatch):
    """By key, where there are keys: decoding a damaged picture, reading a body that is no request."""
    charged = {}

    def charge(batcher, client, seconds):
        charged[client] = charged.get(client, 0.0) + seconds

    monkeypatch.setattr(Batcher, "charge", charge)
    keys = ("correct-horse-battery", "wrong-horse-battery-too")
    with serving(engine, api_keys=keys) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        for key, body in zip(keys, ({"messages": ["x"] * 20_000}, {"model": "nano"}), strict=True):
            assert post(client, body, headers={"Authorization": f"Bearer {key}"}).status_code == 400
    assert len(charged) == 2 and all(seconds > 0 for seconds in charged.values())
    assert not any(key in client for key in keys for client in charged)


def test_one_client_leaves_places_to_others(engine, endless, slow):
    keys = ("correct-horse-battery", "wrong-horse-battery-too")
    bearer = [{"Authorization": f"Bearer {key}"} for key in keys]
    with (
        serving(engine, limits={"rows": 2, "queue": 2}, api_keys=keys) as address,
        httpx.Client(base_url=address, timeout=WAIT_S) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        long = ask(logit_bias=endless, max_tokens=200)
        assert post(client, ask(max_tokens=1), headers=bearer[1]).status_code == 200
        url = f"{address}/v1/chat/completions"
        sent = [pool.submit(httpx.post, url, json=long, headers=bearer[0], timeout=WAIT_S) for _ in range(3)]
        client.headers.update(bearer[1])
        until(lambda: metric(client, "qwenvl_queue_length") + metric(client, "qwenvl_answers_running") == 3)
        assert code(post(client, ask(), headers=bearer[0])) == (429, "queue_full")
        assert post(client, ask(max_tokens=1), headers=bearer[1]).status_code == 200
        assert [each.result(WAIT_S).status_code for each in sent] == [200] * 3
