"""The kernels that TensorRT-RTX compiles when an engine runs, kept beside the plan for the next process.

Its plans hold kernels in a form that fits many GPUs. They are finished on the machine at hand, which takes from seconds
to minutes. TensorRT itself has finished kernels in its plans and no such cache.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from qwenvl_edge.backends.tensorrt.library import Library


class KernelCache:
    """The runtime cache of one engine, in the file plans/<target>.<engine>.kernels.

    TensorRT-RTX checks a file against its version and the GPU, and takes no other: then kernels are compiled anew and
    the file is replaced. A bundle that cannot be written is used without.
    """

    def __init__(self, engine: Any, path: Path):
        self._engine = engine
        self._path = path
        self._cache = engine.create_runtime_config().create_runtime_cache()
        self._runs = 0
        self._kept = b""
        with contextlib.suppress(OSError):
            stored = path.read_bytes()
            if self._cache.deserialize(stored):
                self._kept = stored

    @classmethod
    def open(cls, engine: Any, library: Library, plan: Path) -> KernelCache | None:
        """The cache of the engine in the file `plan`; None with a TensorRT that has none."""
        if not hasattr(library.module, "IRuntimeCache"):
            return None
        return cls(engine, plan.parent.with_name(f"{plan.parent.name}.{plan.stem}.kernels"))

    def config(self, allocation: Any) -> Any:
        """Return the configuration of an execution context; allocation: its ExecutionContextAllocationStrategy."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        config.set_runtime_cache(self._cache)
        return config

    def keep(self) -> None:
        """Write the file after the first run, the second, the fourth and so on, if kernels came since."""
        self._runs += 1
        if self._runs & (self._runs - 1):
            return
        now = bytes(memoryview(self._cache.serialize()))
        if now == self._kept:
            return
        self._kept = now
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            new.write_bytes(now)
            new.replace(self._path)
        except OSError:  # read-only, or full: the next process compiles again
            with contextlib.suppress(OSError):
                new.unlink()
