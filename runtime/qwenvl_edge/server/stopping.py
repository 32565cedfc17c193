"""End of a server: the first signal lets it finish its answers, the second one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from qwenvl_edge.server.logs import LOGGER, log

_BY_A_SIGNAL = 128  # exit codes, as shells count


class Server(uvicorn.Server):
    """uvicorn's server, which a second signal ends at once: unfinished answers, threads and all."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if self.should_exit:
            log("stopped at once; answers under way were not finished")
            for handler in LOGGER.handlers:
                handler.close()
            os._exit(_BY_A_SIGNAL + sig)
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def sigterm_last(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM end the process after the block: uvicorn sends it again as soon as it has stopped, before the last
    log lines are written."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    came = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        server.should_exit = True

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        signal.raise_signal(signal.SIGTERM)
