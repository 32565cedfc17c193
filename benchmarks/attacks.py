"""Hostile requests against a server, of every kind that has once hurt one: run by hostile.py as a process of its own.

    python benchmarks/attacks.py ADDRESS --seconds 60 [--threads 6] [--seed 1] [--kinds nested_arrays ...]

The last line counts what was done, {"KIND": times, ...}. Answers are not looked at: they may be errors, or none.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import functools
import http.client
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

ROUTES = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
_PATIENCE_S = 10.0
_SIDES = (2000, 2600, 3300, 4000, 4990)


class Attacker:
    """Sends what no client should send.

    at: the server's host and port. origin: the address from which it is sent; "": any.
    """

    def __init__(self, at: tuple[str, int], seed: int, origin: str = "") -> None:
        self._at = at
        self._from = (origin, 0) if origin else None
        self._random = random.Random(seed)

    def post(
        self, body: bytes | dict[str, Any], *, kind: str = "application/json", timeout: float = _PATIENCE_S
    ) -> None:
        """Send a request and read the answer, or give up."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self._at, timeout=timeout, source_address=self._from)
        try:
            connection.request("POST", self._random.choice(ROUTES[:1]), data, {"Content-Type": kind})
            connection.getresponse().read()
        finally:
            connection.close()

    def ask(self, words: str = "x", url: str | None = None, **options: Any) -> dict[str, Any]:
        """A request that is well-formed as far as it goes."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
        if url is not None:
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return {"model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, **options}

    def form(self, schema: dict[str, Any], **options: Any) -> None:
        """Ask for an answer in a form."""
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        self.post(self.ask(response_format=wanted, **options))

    def nested_arrays(self) -> None:
        """A form whose end is far beyond any answer."""
        schema: dict[str, Any] = {"type": self._random.choice(("null", "integer", "string"))}
        for _ in range(self._random.randint(2, 4)):
            schema = {"type": "array", "minItems": self._random.choice((100, 1000, 100_000)), "items": schema}
        self.form(schema)

    def crossed_patterns(self) -> None:
        """A form that compiles for ever."""
        first = self._random.randrange(1000)
        patterns = [f"^(a|b)*a(a|b){{{first % 7 + i}}}$" for i in range(self._random.randint(8, 30))]
        each = [{"properties": {"a": {"type": "string", "pattern": pattern}}} for pattern in patterns]
        self.form({"type": "object", "allOf": each, "required": ["a"], "title": str(first)})

    def long_pattern(self) -> None:
        """A form that a few bytes make large."""
        self.post(self.ask(guided_regex=f"(x|yy){{{self._random.randint(10**4, 10**7)}}}z"))

    def many_messages(self) -> None:
        """Megabytes of things that are no messages."""
        item = self._random.choice((b"{}", b"1", b'{"role":"user"}', b"[[]]"))
        self.post(
            b'{"model":"m","messages":[' + b",".join([item] * self._random.choice((1000, 100_000, 600_000))) + b"]}"
        )

    def wrong_fields(self) -> None:
        """A request with one thing out of place."""
        wrong = self._random.choice(
            (None, -1, 1e308, "x" * 1000, [], {}, [[[]]], True, {"a": {"b": 1}}, 10**40, "\ud800")
        )
        body = self.ask()
        place = self._random.choice(("messages", "max_tokens", "stop", "response_format", "logit_bias", "seed", "role"))
        if place == "role":
            body["messages"][0][self._random.choice(("role", "content", "type"))] = wrong
        else:
            body[place] = wrong
        self.post(body)

    def garbage(self) -> None:
        """Bytes that are no request."""
        with self._connected() as sock:
            sock.sendall(self._random.randbytes(self._random.randint(1, 3000)) + b"\r\n\r\n")
            sock.recv(1000)

    def broken_form(self) -> None:
        """A multipart body that is none."""
        self.post(self._random.randbytes(5000), kind="multipart/form-data; boundary=x")

    def tall_picture(self) -> None:
        """A picture of one pixel's width."""
        self.post(self.ask(url=_png(1, self._random.choice((200_000, 25_000_000)), cut=True)))

    def large_pictures(self) -> None:
        """Pictures that take a hundred times their bytes."""
        side = self._random.choice(_SIDES)
        body = self.ask()
        colours = [self._random.randbytes(3) for _ in range(self._random.randint(1, 3))]
        pictures = [_png(side, side, colour=colour) for colour in colours]
        body["messages"][0]["content"][:0] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        self.post(body)

    def damaged_picture(self) -> None:
        """A picture with bytes of another."""
        data = bytearray(base64.b64decode(_png(40, 40).partition(",")[2]))
        for _ in range(5):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        self.post(self.ask(url="data:;base64," + base64.b64encode(data).decode()))

    def long_text(self) -> None:
        """Megabytes of words."""
        self.post(
            self.ask(
                self._random.choice(("x", "word ", "é", "\u1112\u1161\u11ab", " "))
                * self._random.randint(10**5, 4 * 10**6)
            )
        )

    def other_places(self) -> None:
        """Pictures from where none may be read."""
        self.post(
            self.ask(
                url=self._random.choice(("file:///etc/passwd", "http://127.0.0.1:1/", "https://x.invalid/a", "ftp:a"))
            )
        )

    def idle(self) -> None:
        """Connections on which nothing comes."""
        with contextlib.ExitStack() as stack:
            for _ in range(self._random.randint(10, 60)):
                stack.enter_context(self._connected())
            time.sleep(self._random.random())

    def half_header(self) -> None:
        """A header that never ends."""
        with self._connected() as sock:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
            for _ in range(self._random.randint(1, 5)):
                time.sleep(0.2)
                sock.sendall(b"X-a: b\r\n")

    def slow_body(self) -> None:
        """Bodies that come a byte at a time, and do not end."""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(self._connected()) for _ in range(self._random.randint(1, 40))]
            for sock in socks:
                sock.sendall(head + b"Content-Length: 20000000\r\n\r\n{" + b" " * self._random.randrange(100_000))
            for _ in range(3):
                time.sleep(0.3)
                for sock in socks:
                    sock.sendall(b" ")

    def unread_answer(self) -> None:
        """A stream that nobody reads."""
        body = json.dumps(self.ask("Describe the picture.", stream=True, max_tokens=64, ignore_eos=True)).encode()
        with self._connected() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(_head(body) + body)
            time.sleep(self._random.random() * 2)

    def leaving(self) -> None:
        """A client that goes before it is answered."""
        body = json.dumps(self.ask("Describe the picture.", max_tokens=64, ignore_eos=True)).encode()
        with self._connected() as sock:
            sock.sendall(_head(body) + body)
            time.sleep(self._random.random() / 10)

    def _connected(self) -> socket.socket:
        return socket.create_connection(self._at, _PATIENCE_S, self._from)

    @property
    def kinds(self) -> dict[str, Callable[[], None]]:
        """All attacks by name."""
        helpers = ("post", "ask", "form", "kinds")
        public = (name for name in vars(type(self)) if not name.startswith("_") and name not in helpers)
        return {name: getattr(self, name) for name in public}


KINDS = tuple(Attacker(("", 0), 0).kinds)


def _head(body: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body)


def _png(width: int, height: int, *, colour: bytes = b"\0\0\0", cut: bool = False) -> str:
    """A data: URI of a picture in one colour; cut: its data end early."""
    size = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = _chunk(b"IHDR", size) + _chunk(b"PLTE", colour) + _chunk(b"IDAT", _rows(width, height, cut))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks + _chunk(b"IEND", b"")).decode()


@functools.lru_cache(maxsize=16)
def _rows(width: int, height: int, cut: bool) -> bytes:
    """Rows of a palette's first colour, compressed; kept, since attackers share the server's cores here."""
    return zlib.compress(b"\0" * (1 << 20 if cut else (1 + width) * height), 1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def attack(options: argparse.Namespace, seed: int, counts: collections.Counter[str]) -> None:
    """Attack for some seconds, each time in another of the chosen ways."""
    parts = urlsplit(options.address)
    attacker = Attacker((parts.hostname or "127.0.0.1", parts.port or 80), seed, options.origin)
    kinds, pick = attacker.kinds, random.Random(seed)
    ends = time.monotonic() + options.seconds
    while time.monotonic() < ends:
        name = pick.choice(options.kinds)
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            kinds[name]()
        counts[name] += 1


def main() -> None:
    """Attack from several threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help="default: all")
    parser.add_argument("--origin", default="", metavar="ADDRESS", help="send from there, such as 127.0.0.2")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    threads = [
        threading.Thread(target=attack, args=(options, options.seed + number, counts), daemon=True)
        for number in range(options.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(options.seconds + 3 * _PATIENCE_S)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
