"""Who may ask: keys, hosts, origins."""

import asyncio

import httpx
import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.cli import main
from qwenvl_edge.server.command import uvicorn_config
from qwenvl_edge.server.settings import ServerSettings, read_api_keys
from support.served import WAIT_S, ask, post, serving

KEY = "correct-horse-battery"


def code(response):
    return response.status_code, response.json()["error"]["code"]


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
