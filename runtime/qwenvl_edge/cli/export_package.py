"""The package qwenvl_edge_export, which an installation of the runtime alone does not have."""

from __future__ import annotations

import importlib
from typing import Any

from qwenvl_edge.errors import QwenVLError


def import_export(module: str, extra: str = "export") -> Any:
    """Import a module of qwenvl_edge_export.

    Raises:
        QwenVLError: it or a package that it needs is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(f"qwenvl_edge_export.{module}")
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"this command needs {error.name}, which is not installed; run: pip install 'qwenvl-edge[{extra}]'"
        ) from error
