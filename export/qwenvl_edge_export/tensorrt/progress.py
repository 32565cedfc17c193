"""How far a build is, from TensorRT's nested phases."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from qwenvl_edge.backends.tensorrt.library import Library

Progress: TypeAlias = Callable[[int, int, str], None]

STEPS = 1000


def monitor(library: Library, report: Callable[[int], None]) -> Any:
    """An IProgressMonitor that calls `report` with how much is done of STEPS, never less than before.

    The build ends early when its `interrupted` is set.
    """
    trt = library.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined,unused-ignore]
        """Called by TensorRT, from any of its threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._phases = Phases()
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                report(self._phases.step(phase_name, step))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def interruptible(watch: Any) -> Iterator[None]:
    """Let Ctrl-C end the build that `watch` monitors, and raise it behind it: no exception may pass TensorRT's frames.

    So do SIGTERM and SIGHUP where somebody handles them (signals.terminable).

    Raises:
        KeyboardInterrupt: Ctrl-C came within the block, or what the other signal's handler raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread
        return

    came: list[int] = []

    def note(number: int, _: object) -> None:
        watch.interrupted = True
        came.append(number)

    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in known}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


class Phases:
    """The share of the whole that is done: a phase inside another one fills that one's current step."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[float, float, int]] = {}  # name -> where it begins, its width, its steps
        self._done: dict[str, int] = {}
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins within `parent`."""
        begin, width, count = self._open.get(parent or "", (0.0, 1.0, 1))
        share = width / count
        self._open[name] = (begin + share * self._done.get(parent or "", 0), share, max(steps, 1))
        self._done[name] = 0

    def step(self, name: str, step: int) -> int:
        """Step number `step` of `name` is done; returns how much of the whole is, of STEPS."""
        begin, width, count = self._open.get(name, (self._reached, 0.0, 1))
        self._done[name] = step + 1
        self._reached = min(max(self._reached, begin + width * (step + 1) / count), 1.0)
        return round(self._reached * STEPS)

    def finish(self, name: str) -> None:
        """The phase is over."""
        self._open.pop(name, None)
        self._done.pop(name, None)
