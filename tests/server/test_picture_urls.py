"""Pictures of other hosts: none that the operator did not list, and no way round that."""

import http.server
import socket
import threading
from typing import ClassVar

import httpx
import pytest

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.fetch import Fetcher
from support.served import PICTURE, ask, data_uri, post, serving

PNG = PICTURE.read_bytes()


class Host(http.server.BaseHTTPRequestHandler):
    """Pictures, redirects and endless bodies."""

    asked: ClassVar = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/a.png":
            self.send_response(200)
            self.send_header("Content-Length", str(len(PNG)))
            self.end_headers()
            self.wfile.write(PNG)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65536))
            except OSError:
                pass
        else:
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    """ "127.0.0.1:port" of a server of pictures."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        Host.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url, *hosts, limit=1 << 20, **options):
    return Fetcher(hosts, limit=limit, **options).fetch(url)


def test_a_listed_address_is_fetched_from(host):
    assert fetch(f"http://{host}/a.png", host) == PNG


@pytest.mark.parametrize("hosts", [(), ("127.0.0.1",), ("example.com",), ("127.0.0.1:1",)])
def test_hosts_that_are_not_listed_are_not_asked(host, hosts):
    with pytest.raises(ApiError, match="not fetched from this host"):
        fetch(f"http://{host}/a.png", *hosts)
    assert Host.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://allowed.example@127.0.0.1/",
        "http://allowed.example.evil.com/",
        "http://[::1]/",
        "http://allowed.example:8080/",
    ],
)
def test_look_alikes_are_not_listed(url):
    with pytest.raises(ApiError, match="not fetched from this host"):
        fetch(url, "allowed.example")


@pytest.mark.parametrize("url", ["http://[::1/", "http://a:x/", "http://a:99999/"])
def test_malformed_urls(url):
    with pytest.raises(ApiError, match="malformed"):
        fetch(url, "a")


def test_redirects_are_not_followed(host):
    with pytest.raises(ApiError, match="answered 302; redirects are not followed"):
        fetch(f"http://{host}/redirect", host)
    assert Host.asked == ["/redirect"]


def test_a_body_without_end_is_cut_off(host):
    with pytest.raises(ApiError, match="more than 1,048,576 bytes"):
        fetch(f"http://{host}/endless", host)


def resolving(monkeypatch, *answers):
    """Let names resolve to these addresses, a list for each look-up; returns the names looked up."""
    asked, left = [], list(answers)

    def getaddrinfo(name, port, *_, **__):
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"]
PRIVATE += ["::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "2002:7f00:1::"]


@pytest.mark.parametrize("address", PRIVATE)
def test_names_with_private_addresses_are_refused(monkeypatch, address):
    resolving(monkeypatch, ["93.184.216.34", address])
    with pytest.raises(ApiError, match="private address"):
        fetch("http://camera.example/a.png", "camera.example")


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch):
    asked = resolving(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    connected = []

    def connect(address, timeout):
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetch("http://camera.example/a.png", "camera.example")
    assert asked == ["camera.example"] and connected == [("93.184.216.34", 80)]


def test_end_to_end(engine, host, tmp_path):
    (tmp_path / "a b.png").write_bytes(PNG)
    with (
        serving(engine, url_hosts=(host,), picture_folders=(tmp_path,)) as address,
        httpx.Client(base_url=address) as client,
    ):
        question = "Where is the red mug?"
        answers = [
            post(client, ask(question, url=url)).json()["choices"][0]["message"]["qwenvl"]["boxes"]
            for url in (f"http://{host}/a.png", f"file://{tmp_path}/a%20b.png", data_uri())
        ]
        assert answers[0] == answers[1] == answers[2] != []
        for url in (f"http://{host}/redirect", "http://localhost/", "file:///etc/passwd"):
            response = post(client, ask(url=url))
            assert response.status_code == 400 and response.json()["error"]["param"] == "messages"
