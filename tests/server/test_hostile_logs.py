"""A log that nobody takes stops nothing, and every line of it has one form."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from support.hostile import connected, plain
from support.served import WAIT_S, until


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


def lines_beyond(pipe):
    """Make a pipe hold as little as it can; return a number of log lines, of 100 bytes at least, that is far more."""
    held = 65536
    if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        held = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    return max(300, 3 * held // 100) if pipe is not None else 300


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
            for _ in range(lines_beyond(process.stderr)):
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
