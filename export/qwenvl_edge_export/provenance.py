"""The versions that a bundle's manifest records."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("torch", "onnx-ir", "numpy", "safetensors", "onnxruntime")


def exporter_name() -> str:
    """This exporter with its version."""
    return f"qwenvl-edge {_version('qwenvl-edge')}"


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that made the bundle."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
