"""A `qwenvl serve` that is ended and started again while clients go on asking it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MODEL = "soak"
CLIENTS = 2
PAUSE_S = 0.1
WITHIN_S = 60.0
RETRY_S = 0.2


class Client:
    """Asks one question again and again, as a camera's program would; an error is asked again a moment later."""

    def __init__(self, port: int, body: bytes) -> None:
        self._url, self._body = f"http://127.0.0.1:{port}/v1/chat/completions", body
        self.answers: list[tuple[float, str]] = []
        self.errors: list[float] = []
        self.hung = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                self.answers.append((time.monotonic(), self.ask()))
                self.stop.wait(PAUSE_S)
            except TimeoutError:
                self.hung += 1
            except (OSError, ValueError, KeyError, urllib.error.URLError):
                self.errors.append(time.monotonic())
                self.stop.wait(RETRY_S)

    def ask(self) -> str:
        """The text of an answer."""
        request = urllib.request.Request(self._url, self._body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WITHIN_S) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])


def start(bundle: str, port: int) -> subprocess.Popen[bytes]:
    """Start a server; return when it is ready."""
    program = "import sys; from qwenvl_edge.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(bundle), "--port", str(port), "--threads", "1"]
    command += ["--model-name", MODEL]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=WITHIN_S):
                return process
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server ended with code {process.returncode} before it was ready.")


def restarted_under_load(bundle: str, seconds: float, picture: Path, question: str) -> dict[str, Any]:
    """Ask for half of `seconds`, end the server and start it again, ask for the other half; what the clients saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": question},
    ]
    message = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 32, "temperature": 0}
    body = json.dumps(message).encode()
    process = start(bundle, port)
    try:
        right = Client(port, body).ask()
        clients = [Client(port, body) for _ in range(CLIENTS)]
        for client in clients:
            client.thread.start()
        time.sleep(seconds / 2)
        ended = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        process = start(bundle, port)
        time.sleep(seconds / 2)
        for client in clients:
            client.stop.set()
            client.thread.join()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    return _seen(clients, right, ended, code)


def _seen(clients: list[Client], right: str, ended: float, code: int) -> dict[str, Any]:
    times = sorted(at for client in clients for at, _ in client.answers)
    before, after = [at for at in times if at <= ended], [at for at in times if at > ended]
    gaps = [late - early for early, late in itertools.pairwise(times)]
    return {
        "before": len(before),
        "after": len(after),
        "away_s": max(gaps, default=float("nan")),
        "errors": sum(len(client.errors) for client in clients),
        "wrong": sum(text != right for client in clients for _, text in client.answers),
        "hung": sum(client.hung for client in clients),
        "exit_code": code,
        "cores": len(os.sched_getaffinity(0)),
    }
