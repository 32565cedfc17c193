"""Who may ask, how much is taken on, and what happens when it is too much or the server stops."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from qwenvl_edge import BackendError, QwenVLError
from qwenvl_edge.cli import main
from qwenvl_edge.server.command import uvicorn_config
from qwenvl_edge.server.settings import ServerLimits, ServerSettings, read_api_keys
from support.served import PICTURE, WAIT_S, ask, data_uri, metric, post, serving, until

KEY = "correct-horse-battery"


def code(response):
    return response.status_code, response.json()["error"]["code"]


# Keys, hosts, origins


def test_a_key_is_needed_beyond_loopback(tmp_path, capsys):
    for host in ("0.0.0.0", "192.168.1.2", "::", "robot.example"):
        with pytest.raises(QwenVLError, match="can be reached by others"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, api_keys=(KEY,)).host == host
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServerSettings(host=host).is_loopback
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--api-key-file" in capsys.readouterr().err


def test_keys_come_from_a_file(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(QwenVLError, match="cannot read"):
        read_api_keys(path)
    for empty in ("\n", "# no key\n"):
        path.write_text(empty)
        with pytest.raises(QwenVLError, match="empty"):
            read_api_keys(path)
    path.write_text(f"# of the robots\n{KEY}\n\n{KEY}-2\n")
    path_bytes = tmp_path / "bytes"
    path_bytes.write_bytes(b"\xff" * 20)
    for bad in (path_bytes, tmp_path, tmp_path / "none"):
        with pytest.raises(QwenVLError, match=r"cannot read the API key in .*: [A-Za-z ]+\."):
            read_api_keys(bad)
    assert read_api_keys(path) == (KEY, f"{KEY}-2") and KEY not in repr(ServerSettings(api_keys=(KEY,)))
    with pytest.raises(QwenVLError, match="fewer than 16"):
        ServerSettings(api_keys=(KEY, "short"))
    with pytest.raises(QwenVLError, match="cannot carry"):
        ServerSettings(api_keys=("ключ" * 4,))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"port": -1}, "port"), ({"port": 70_000}, "port"), ({"url_hosts": ("https://a.example",)}, "NAME:PORT")],
)
def test_impossible_settings(wrong, words):
    with pytest.raises(QwenVLError, match=words):
        ServerSettings(**wrong)


def test_requests_need_the_key(engine):
    with serving(engine, api_keys=(KEY,)) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        for header in (None, "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer \xff"):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/chat/completions")):
                assert code(client.request(method, path, headers=headers)) == (401, "invalid_api_key")
        for path in ("/healthz", "/readyz", "/"):
            assert client.get(path).status_code == 200
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.get("/v1/models").status_code == 200
        assert post(client, ask(max_tokens=2)).status_code == 200
        # With a key, the server may be known by any name.
        assert client.get("/v1/models", headers={"Host": "robot.example"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "[::1", ""])
def test_other_names_for_loopback_are_refused(http, host):
    assert code(http.get("/v1/models", headers={"Host": host})) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_names_of_loopback(http, host):
    assert http.get("/healthz", headers={"Host": host}).status_code == 200


def test_without_a_key_other_machines_are_refused_whoever_bound_the_address(engine):
    app = uvicorn_config(engine, ServerSettings(model_name="nano")).app

    def status(client):
        async def ask():
            transport = httpx.ASGITransport(app, client=(client, 5000))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return (await http.get("/healthz")).status_code

        return asyncio.run(ask())

    assert [status(client) for client in ("127.0.0.1", "::1", "192.0.2.7", "2001:db8::1")] == [200, 200, 403, 403]


def test_other_pages_requests_are_refused(http, address):
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        assert code(post(http, ask(), headers={"Origin": origin})) == (403, "origin_not_allowed")
    assert post(http, ask(max_tokens=1), headers={"Origin": address}).status_code == 200


def test_every_response_has_the_headers_that_protect_a_page(http):
    for path in ("/", "/nothing", "/v1/models"):
        headers = http.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-request-id"].startswith("req-")
        assert "server" not in headers and "access-control-allow-origin" not in headers


# Limits


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


# Requests that are none


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[1]", None),
        (b"{", None),
        (b'{"model": "nano", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (b'{"model": "nano", "messages": []}', "messages"),
        (b'{"model": "nano", "messages": [{"role": "tool", "content": "x"}]}', "messages.0"),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_bodies_that_are_no_request(http, body, param):
    response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"tools": [{}]},
        {"logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"top_logprobs": 1},
        {"temperature": -1},
        {"top_p": 0},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"max_tokens": 0},
        {"logit_bias": {"99999": 1}},
        {"logit_bias": {"-1": 1}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "grammar"}},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "texts": "?"}]}]},
        {"response_format": {"type": "json_object", "strict": True}},
        {"stream": True, "stream_options": {"include_usages": True}},
        {"max_token": 3},
        {"min_tokens": 9, "max_tokens": 8},
        {"guided_json": "{", "guided_regex": "a"},
        {"guided_json": {"type": "object"}, "guided_choice": ["a"]},
        {"grammar": "root ::= x"},
        {"structured_outputs": {}},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"top_k": -2},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"messages": [{"role": "system", "content": "only"}]},
    ],
)
def test_what_cannot_be_done_is_refused(http, change):
    response = post(http, {**ask(), **change})
    assert response.status_code == 400 and response.json()["error"]["message"].endswith(".")


def test_methods_types_and_routes_that_are_not_there(http):
    refused = http.get("/v1/chat/completions")
    assert refused.status_code == 405 and "does not take GET; it takes POST." in refused.json()["error"]["message"]
    for path in ("/health", "/healthz", "/readyz"):
        assert http.head(path).status_code == 200 and http.head(path).content == b""
    assert http.get("/v1/models/someone/nano").json()["error"]["code"] == "model_not_found"
    assert http.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert http.get("/static/../settings.py").status_code == 404
    assert http.get("/docs").status_code == 404


def test_pictures_as_parts_of_the_request(http):
    body = ask("Where is the red mug?", url="attachment:photo")
    files = {"photo": ("demo.png", PICTURE.read_bytes(), "image/png")}
    response = http.post("/v1/chat/completions", data={"request": json.dumps(body)}, files=files)
    assert response.json()["choices"][0]["message"]["qwenvl"]["boxes"][0]["label"] == "the red mug"
    missing = http.post("/v1/chat/completions", data={"other": "x"}, files=files)
    assert missing.status_code == 400 and "'request'" in missing.json()["error"]["message"]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/chat/completions", content=b"nonsense", headers=headers).status_code == 400
    headers = {"Content-Type": "multipart/form-data"}
    assert http.post("/v1/chat/completions", content=b"nonsense", headers=headers).status_code == 400


def test_a_failure_of_the_backend_keeps_its_words_to_itself(backend, http, monkeypatch, caplog):
    def decode(*_):
        raise BackendError("secret path")

    monkeypatch.setattr(backend, "decode_unchecked", decode)
    response = post(http, ask())
    assert response.status_code == 500 and "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    events = post(http, ask(stream=True)).text
    assert '"server_error"' in events and "[DONE]" not in events
    monkeypatch.undo()
    assert post(http, ask(max_tokens=2)).status_code == 200


# Watching and stopping


def test_metrics(http):
    before = {
        name: metric(http, name) for name in ('qwenvl_tokens_total{kind="prompt_cached"}', "qwenvl_answers_total")
    }
    post(http, ask(url=data_uri()))
    post(http, ask(url=data_uri()))
    assert metric(http, "qwenvl_answers_total") == before["qwenvl_answers_total"] + 2
    assert (
        metric(http, 'qwenvl_tokens_total{kind="prompt_cached"}') > before['qwenvl_tokens_total{kind="prompt_cached"}']
    )
    for name in ("time_to_first_token_seconds_count", "tokens_per_second_count", "queue_length", "responses_total"):
        assert f"qwenvl_{name}" in http.get("/metrics").text


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_hold_no_words_unless_asked(engine, monkeypatch, prompts):
    lines = []
    for module in ("exchange", "guard"):
        monkeypatch.setattr(
            f"qwenvl_edge.server.{module}.log", lambda event, **fields: lines.append({"event": event, **fields})
        )
    with serving(engine, log_prompts=prompts) as address, httpx.Client(base_url=address, timeout=WAIT_S) as client:
        response = post(client, ask("Something private?", url=data_uri()))
    text = json.dumps(lines)
    answer = next(line for line in lines if line["event"] == "answer")
    assert answer["id"] == response.headers["x-request-id"] and answer["new_tokens"] > 0
    assert ("private" in text) == prompts and "base64" not in text


def start(bundle, *options):
    """`qwenvl serve` as a process of its own, and its address."""
    command = [sys.executable, "-m", "qwenvl_edge.cli", "serve", str(bundle), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    until(lambda: process.poll() is not None or any("startup complete" in line for line in lines))
    return process, reader, lines, re.search(r"http://\S+(?=/)", "".join(lines)).group()


def test_stopping_finishes_what_runs(engine, endless):
    process, reader, lines, address = start(engine.bundle.path, "--model-name", "nano")
    try:
        body = ask(logit_bias=endless, max_tokens=400, stream=True)
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=WAIT_S) as response:
            events = response.iter_lines()
            next(events)
            process.send_signal(signal.SIGTERM)
            text = "\n".join(events)
        assert '"finish_reason":"length"' in text and text.rstrip().endswith("[DONE]")
        assert process.wait(WAIT_S) == -signal.SIGTERM  # uvicorn ends by the signal, but last
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
    finally:
        process.kill()
    reader.join(WAIT_S)  # the last lines may be read after the process has ended
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert {"ready", "stopping", "stopped", "answer"} <= {entry["event"] for entry in entries}
    (serving,) = (entry for entry in entries if entry["event"] == "serving")
    assert (serving["model"], serving["context"]) == ("nano", engine.max_context)
    assert serving["runs"].startswith("ONNX Runtime ")


def test_a_taken_port_is_one_sentence(bundle, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", str(bundle.path), "--port", port, "--threads", "1"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}: another program listens there" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_one_sentence(tmp_path, capsys, port):
    assert main(["serve", str(tmp_path), f"--port={port}"]) == 2
    assert capsys.readouterr().err.startswith(f"qwenvl: the port is {port}; it must be ")


def test_without_its_packages_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'qwenvl-edge[server]'" in capsys.readouterr().err
