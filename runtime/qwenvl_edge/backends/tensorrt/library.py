"""The installed TensorRT: which of the two APIs it is, its version, its log, its plugins.

TensorRT and TensorRT for RTX have the same Python API under two names; all that differs is said here.
"""

from __future__ import annotations

import importlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.bundle.engines import (
    PLUGIN_OP,
    TENSORRT,
    TENSORRT_RTX,
    Builder,
    Machine,
    platform_name,
    plugin_file,
    plugin_version,
)
from qwenvl_edge.errors import BackendError

_NAMES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
_MODULES = {TENSORRT: ("tensorrt",), TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_LOG_LINES = 6
_registered: set[tuple[str, str]] = set()  # as TensorRT keeps plugins: for the process, each name once
_WARNING = 2  # ILogger.Severity counts down: INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4


@dataclass(frozen=True)
class Library:
    """One installed API: `module` is its Python package, `log` an ILogger that keeps the last warnings and errors."""

    api: str
    module: Any
    log: Any

    @property
    def version(self) -> str:
        """Its exact version, such as "10.14.1.48"; a plan runs on the version that built it only."""
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        """Name and version, for messages."""
        return f"{_NAMES[self.api]} {self.version}"

    def machine(self, compute_capability: int) -> Machine:
        """This library on a GPU, as plans name it."""
        return Machine(Builder(self.api, self.version, platform_name()), compute_capability)

    def failed(self, what: str) -> BackendError:
        """The error to raise where a call returned nothing: what was tried, and TensorRT's own lines about it."""
        lines = "; ".join(" ".join(line.split())[:300] for line in self.log.lines)
        self.log.lines.clear()
        return BackendError(f"{self.name} could not {what}: {lines or 'it gave no reason'}.")

    def load_plugin(self, plugin: str, folder: Path) -> None:
        """Register a plugin library for this process, once: "<file> <version>" as a plan names it, from its folder.

        Raises:
            BackendError: it is missing, is no plugin library for this TensorRT, or has another version of the op.
        """
        if (entry := (self.name, plugin)) in _registered:
            return
        path = folder / plugin_file(plugin)
        if not path.is_file():
            raise BackendError(f'the plan needs the plugin "{path}", which is not there; build the plan again.')
        registry = self.module.get_plugin_registry()
        handle = registry.load_library(str(path))
        if registry.get_creator(PLUGIN_OP, plugin_version(plugin), "") is None:
            if handle is None:
                raise self.failed(f'load the plugin "{path}"')
            raise BackendError(
                f'"{path}" has no {PLUGIN_OP} of version {plugin_version(plugin)}; '
                "compile this version's plugin (docs/plugin.md) and build the plan with it."
            )  # None with a creator: another file has brought the same op
        _registered.add(entry)


def installed_libraries() -> list[Library]:
    """Every TensorRT that can be imported here, TensorRT before TensorRT-RTX."""
    found = []
    for api, names in _MODULES.items():
        for name in names:
            try:
                module = importlib.import_module(name)
            except (ImportError, OSError):  # OSError: the package is there, a library that it needs is not
                continue
            found.append(Library(api, module, _log(module)))
            break
    return found


def _log(module: Any) -> Any:
    class Log(module.ILogger):  # type: ignore[misc,name-defined,unused-ignore]
        """Keeps the last lines from warnings up."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=_LOG_LINES)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= _WARNING:
                self.lines.append(msg)

    return Log()
