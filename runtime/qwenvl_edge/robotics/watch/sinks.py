"""Sinks of a watch's lines: the standard output, a file that may fill its disk, an MQTT broker."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import harmless, say
from qwenvl_edge.machine.urls import show

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_QUEUED = 100  # messages kept while the broker is away
_AT_LEAST_ONCE = 1


class Sink(Protocol):
    """Takes lines of JSON."""

    def send(self, line: str) -> None:
        """Take a line. Raises QwenVLError where it cannot; the next one may go again."""

    def close(self) -> None:
        """Send what waits, and end."""


class Output:
    """The standard output."""

    def send(self, line: str) -> None:
        """See Sink. Raises OutputError when the output is gone, which ends the watch."""
        say(harmless(line, sys.stdout))

    def close(self) -> None:
        """See Sink."""


class LineFile:
    """A file to which lines are appended, each whole or not at all: a full disk costs the lines that come meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def send(self, line: str) -> None:
        """See Sink."""
        data = f"{line}\n".encode()
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            reason = "" if written == len(data) else "No space left on device"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise QwenVLError(f"cannot write to {show(str(self._path))}: {reason}; the line is lost, make room.")

    def close(self) -> None:
        """See Sink."""
        os.close(self._file)


class Mqtt:
    """An MQTT broker, by paho (the extra "mqtt").

    Lines go to a topic, the newest of them retained for subscribers that come later. TOPIC/status is "online" while the
    watch runs, "offline" after its end, also if it dies. While the broker is away, the newest hundred lines wait.

    Args:
        url: mqtt://[user[:password]@]host[:port]/topic; mqtts for TLS.
        tell: takes a sentence when the broker is away.
        password_file: a file with the password, which then need not stand in the command line.

    Raises:
        QwenVLError: the address is none, or paho is not installed.
    """

    def __init__(self, url: str, tell: Callable[[str], object], *, password_file: Path | None = None) -> None:
        parts = urlsplit(url)
        self._topic = parts.path.lstrip("/")
        self._host = parts.hostname
        if parts.scheme not in _PORTS or not self._host or not self._topic or "+" in self._topic or "#" in url:
            raise QwenVLError(f"--mqtt is {show(url)}; give mqtt://HOST[:PORT]/TOPIC, a topic without + and #.")
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise QwenVLError(
                "--mqtt needs paho-mqtt, which is not installed; run: pip install 'qwenvl-edge[mqtt]'"
            ) from None
        self._tell = tell
        client: Any = Client(CallbackAPIVersion.VERSION2)
        if parts.username is not None:
            password = unquote(parts.password or "")
            if password_file is not None:
                password = password_file.read_text(encoding="utf-8").strip()
            client.username_pw_set(unquote(parts.username), password)
        if parts.scheme == "mqtts":
            client.tls_set()
        client.max_queued_messages_set(_QUEUED)
        client.will_set(f"{self._topic}/status", "offline", qos=_AT_LEAST_ONCE, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = lambda *_: tell(f"the MQTT broker {self._host} does not answer; it is tried again.")
        client.on_disconnect = self._on_disconnect
        client.connect_async(self._host, parts.port or _PORTS[parts.scheme])
        client.loop_start()
        self._client = client

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._tell(f"the MQTT broker {self._host} refuses the connection: {reason}.")
            return
        client.publish(f"{self._topic}/status", "online", qos=_AT_LEAST_ONCE, retain=True)

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._tell(f"the MQTT broker {self._host} is gone: {reason}; it is tried again.")

    def send(self, line: str) -> None:
        """See Sink."""
        sent = self._client.publish(self._topic, line, qos=_AT_LEAST_ONCE, retain=True)
        if sent.rc not in (0, 4):  # 4: not connected now, so it waits
            raise QwenVLError(f"the MQTT broker {self._host} is away, and {_QUEUED} lines wait already; one is lost.")

    def close(self) -> None:
        """See Sink."""
        if self._client.is_connected():
            last = self._client.publish(f"{self._topic}/status", "offline", qos=_AT_LEAST_ONCE, retain=True)
            with contextlib.suppress(RuntimeError, ValueError):
                last.wait_for_publish(timeout=5.0)
        self._client.disconnect()
        self._client.loop_stop()
