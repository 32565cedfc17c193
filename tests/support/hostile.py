"""What tests of hostile clients share: their connections, and a question of somebody who does nothing wrong."""

from __future__ import annotations

import socket
import time

import httpx

from support.served import WAIT_S, ask

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
"""The header of a request, but for its length."""
QUICK = 20.0
"""Seconds within which others are answered, on a machine with other work."""


def connected(address):
    """A connection to a server."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def plain(address):
    """A question of somebody who does nothing wrong."""
    started = time.monotonic()
    assert httpx.post(f"{address}/v1/chat/completions", json=ask(max_tokens=2), timeout=WAIT_S).status_code == 200
    assert time.monotonic() - started < QUICK
