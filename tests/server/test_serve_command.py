"""`qwenvl serve` as a program: how it begins, how it stops."""

import contextlib
import ipaddress
import json
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from qwenvl_edge.cli import main
from qwenvl_edge.server.command import reachable
from support.served import WAIT_S, ask, until


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


def test_a_second_signal_stops_at_once(engine, endless):
    """One line says so; the answer under way is not finished, and the exit code is that of a Ctrl-C."""
    process, reader, lines, address = start(engine.bundle.path, "--model-name", "nano")
    try:
        body = ask(logit_bias=endless, max_tokens=1024, stream=True)
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=WAIT_S) as response:
            events = response.iter_lines()
            next(events)
            process.send_signal(signal.SIGINT)
            until(lambda: any("Shutting down" in line for line in lines))
            first = len(lines)
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_S) == 128 + signal.SIGINT
            with contextlib.suppress(httpx.TransportError):
                assert "[DONE]" not in "\n".join(events)
    finally:
        process.kill()
    reader.join(WAIT_S)
    assert [json.loads(line)["event"] for line in lines[first:] if "stopped" in line] == [
        "stopped at once; answers under way were not finished"
    ]
    assert "Traceback" not in "".join(lines)


def test_one_ctrl_c_ends_an_idle_server(engine):
    process, reader, lines, _ = start(engine.bundle.path)
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 128 + signal.SIGINT
    reader.join(WAIT_S)
    text = "".join(lines)
    assert "Traceback" not in text
    assert '"stopped"' in text and lines[-1] == "qwenvl: interrupted\n"


def test_the_address_that_is_shown_can_be_opened(bundle, tmp_path):
    """Of a server on all addresses."""
    key = tmp_path / "key"
    key.write_text("correct-horse-battery")
    process, reader, lines, address = start(bundle.path, "--host", "0.0.0.0", "--api-key-file", str(key))
    try:
        assert "0.0.0.0" not in address and httpx.get(f"{address}/healthz").status_code == 200
    finally:
        process.terminate()
        process.wait(WAIT_S)
    reader.join(WAIT_S)
    (listening,) = (json.loads(line) for line in lines if '"listening"' in line)
    assert listening["host"] == "0.0.0.0"


def test_addresses_that_can_be_opened():
    assert reachable("127.0.0.1") == "127.0.0.1" and reachable("robot.example") == "robot.example"
    for host, version in (("0.0.0.0", 4), ("::", 6)):
        found = ipaddress.ip_address(reachable(host))
        assert found.version == version and not found.is_unspecified
