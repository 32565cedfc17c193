"""Logs on stderr: every line JSON, or every line text; limited in rate; whoever does not read them holds up nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any

from qwenvl_edge.machine.terminal import printable

LOGGER = logging.getLogger("qwenvl_edge.server")
_OWN = (LOGGER.name, "uvicorn.error", "asyncio", "py.warnings")
_RATE = 100  # lines per second, after a burst
_BURST = 2_000
_KEPT_BYTES = 1 << 20
_ATOMIC = 4096  # what a pipe takes whole if it takes anything (POSIX's PIPE_BUF on Linux)
_WAIT_S = 0.2


class JsonFormatter(logging.Formatter):
    """The message as "event", beside it the fields given as extra={"fields": {...}}."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: time, event, fields as NAME=VALUE, one line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        error = f" | {self.formatException(record.exc_info)}" if record.exc_info else ""
        return printable(f"{_time(record)} {level}{record.getMessage().strip()}{fields}{error}")


class StderrHandler(logging.Handler):
    """Writes lines to a descriptor in a thread of its own, as it takes them.

    Lines beyond _RATE, and lines that come while _KEPT_BYTES wait, are left out and counted; the next line says how
    many. A descriptor that is closed or full loses them without a word.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._left_out = 0
        self._allowance, self._last = float(_BURST), time.monotonic()
        self._changed = threading.Condition()
        self._closed = False
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="qwenvl-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; never waits."""
        try:
            line = self.format(record).encode(errors="replace") + b"\n"
        except Exception:  # a log line must not end what it tells of
            return
        with self._changed:
            now = time.monotonic()
            self._allowance = min(_BURST, self._allowance + (now - self._last) * _RATE)
            self._last = now
            if self._allowance < 1 or self._bytes + len(line) > _KEPT_BYTES:
                self._left_out += 1
                return
            if self._left_out:
                note = {"levelno": 30, "levelname": "WARNING", "msg": "lines left out"}
                fields = {"fields": {"lines": self._left_out}}
                self._left_out = 0
                self._put(self.format(logging.makeLogRecord({**note, **fields})).encode() + b"\n")
            self._allowance -= 1
            self._put(line)

    def close(self) -> None:
        """Write what waits, as far as it is taken within some tenths of a second."""
        with self._changed:
            self._closed, self._deadline = True, time.monotonic() + 2 * _WAIT_S
            self._changed.notify()
        self._thread.join(4 * _WAIT_S)
        super().close()

    def _put(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line)
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                line = self._waiting.popleft()
                self._bytes -= len(line)
            if not self._write(line):
                return

    def _write(self, line: bytes) -> bool:
        """Write a line as soon as the descriptor takes it; return False if that is over."""
        rest = memoryview(line)
        while rest:
            if self._closed_and_late():
                return False
            try:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                if not poll.poll(_WAIT_S * 1000):
                    continue
                rest = rest[os.write(self._descriptor, rest[:_ATOMIC]) :]
            except (OSError, ValueError):  # closed, broken or a full disk: the line is lost
                time.sleep(0.01)
                return True
        return True

    def _closed_and_late(self) -> bool:
        return self._closed and time.monotonic() > self._deadline


class Logging:
    """Sends this server's and its libraries' messages to stderr, for the `with` block; uvicorn's access log stays off.

    form: "json", "text", or "auto", which is text on a terminal.
    """

    def __init__(self, form: str = "auto") -> None:
        self._form = form
        self._handler: StderrHandler | None = None
        self._hook = threading.excepthook

    def __enter__(self) -> Logging:
        stream = sys.stderr
        try:
            descriptor, terminal = stream.fileno(), stream.isatty()
        except (AttributeError, OSError, ValueError):  # closed, or not a file
            descriptor, terminal = -1, False
        self._handler = handler = StderrHandler(descriptor)
        as_text = self._form == "text" or (self._form == "auto" and terminal)
        handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
        logging.captureWarnings(True)
        for name in _OWN:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.INFO if name in _OWN[:2] else logging.WARNING)
        threading.excepthook = _log_thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.captureWarnings(False)
        threading.excepthook = self._hook
        for name in _OWN:
            logging.getLogger(name).handlers = []
        if self._handler is not None:
            self._handler.close()


def configure(form: str = "json") -> None:
    """Send messages to stderr until the process ends."""
    Logging(form).__enter__()


def log(event: str, **fields: Any) -> None:
    """Write a line."""
    LOGGER.info(event, extra={"fields": fields})


def _log_thread(arguments: Any) -> None:
    with contextlib.suppress(Exception):
        trace = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        LOGGER.error("a thread failed", exc_info=trace)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
