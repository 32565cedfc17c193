"""Qwen-VL without PyTorch: a bundle and a picture in, grounded answers out.

The names below are loaded when first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl_edge.bundle import Bundle
    from qwenvl_edge.constraint import Constraint
    from qwenvl_edge.control import CancelToken
    from qwenvl_edge.conversation import Turn
    from qwenvl_edge.engine import QwenVLEngine
    from qwenvl_edge.errors import (
        BackendError,
        BundleError,
        CheckpointError,
        ContextError,
        FrameError,
        ImageError,
        PromptError,
        QwenVLError,
    )
    from qwenvl_edge.frames import Frame, FrameSource
    from qwenvl_edge.grounding import Box, Quad, Ref, to_grid, to_pixels
    from qwenvl_edge.image import Picture, load_picture
    from qwenvl_edge.reply import Reply
    from qwenvl_edge.stats import Stats
    from qwenvl_edge.stream import Stream

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle",
    "CancelToken": "control",
    "Constraint": "constraint",
    "Turn": "conversation",
    "QwenVLEngine": "engine",
    "BackendError": "errors",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "ContextError": "errors",
    "FrameError": "errors",
    "ImageError": "errors",
    "PromptError": "errors",
    "QwenVLError": "errors",
    "Frame": "frames",
    "FrameSource": "frames",
    "Box": "grounding",
    "Quad": "grounding",
    "Ref": "grounding",
    "to_grid": "grounding",
    "to_pixels": "grounding",
    "Picture": "image",
    "load_picture": "image",
    "Reply": "reply",
    "Stats": "stats",
    "Stream": "stream",
}

__all__ = [
    "BackendError",
    "Box",
    "Bundle",
    "BundleError",
    "CancelToken",
    "CheckpointError",
    "Constraint",
    "ContextError",
    "Frame",
    "FrameError",
    "FrameSource",
    "ImageError",
    "Picture",
    "PromptError",
    "Quad",
    "QwenVLEngine",
    "QwenVLError",
    "Ref",
    "Reply",
    "Stats",
    "Stream",
    "Turn",
    "load_picture",
    "to_grid",
    "to_pixels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
