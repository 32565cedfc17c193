"""Nodes that run in threads while a test looks at them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.patience import PATIENCE_S


@contextmanager
def in_threads() -> Iterator[Callable[[Callable[[], object], Callable[[], object]], None]]:
    """Give a function that starts `run` in a thread; at the end each is ended by its `close` and has to be over."""
    running = []

    def start(run: Callable[[], object], close: Callable[[], object]) -> None:
        thread = threading.Thread(target=run)
        thread.start()
        running.append((close, thread))

    yield start
    for close, thread in running:
        close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
