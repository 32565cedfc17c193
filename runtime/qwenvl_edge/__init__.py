"""Qwen-VL without PyTorch: a bundle and a picture in, grounded answers out.

The names below are loaded when first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl_edge.bundle.bundle import Bundle
    from qwenvl_edge.constraints.constraint import Constraint
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
    from qwenvl_edge.families.boxes import to_pixels
    from qwenvl_edge.families.places import Box, Point, Quad, Ref, to_grid
    from qwenvl_edge.families.tools import ToolCall
    from qwenvl_edge.inputs.camera import Frame, FrameSource
    from qwenvl_edge.inputs.cancel import CancelToken
    from qwenvl_edge.inputs.clips import Clip, Video
    from qwenvl_edge.inputs.pictures import Picture, load_picture
    from qwenvl_edge.inputs.prompt import Turn
    from qwenvl_edge.inputs.video_files import open_video
    from qwenvl_edge.replies.reply import Reply, Stats, TokenLogprob
    from qwenvl_edge.replies.stream import Stream

__version__ = "0.1.0"

# ONNX Runtime from 1.29 on reports its use to Microsoft unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Bundle": "bundle.bundle",
    "CancelToken": "inputs.cancel",
    "Constraint": "constraints.constraint",
    "Turn": "inputs.prompt",
    "QwenVLEngine": "engine",
    "BackendError": "errors",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "ContextError": "errors",
    "FrameError": "errors",
    "ImageError": "errors",
    "PromptError": "errors",
    "QwenVLError": "errors",
    "Frame": "inputs.camera",
    "FrameSource": "inputs.camera",
    "Box": "families.places",
    "Point": "families.places",
    "Quad": "families.places",
    "Ref": "families.places",
    "to_grid": "families.places",
    "to_pixels": "families.boxes",
    "Clip": "inputs.clips",
    "Video": "inputs.clips",
    "open_video": "inputs.video_files",
    "Picture": "inputs.pictures",
    "load_picture": "inputs.pictures",
    "Reply": "replies.reply",
    "Stats": "replies.reply",
    "Stream": "replies.stream",
    "TokenLogprob": "replies.reply",
    "ToolCall": "families.tools",
}

__all__ = [
    "BackendError",
    "Box",
    "Bundle",
    "BundleError",
    "CancelToken",
    "CheckpointError",
    "Clip",
    "Constraint",
    "ContextError",
    "Frame",
    "FrameError",
    "FrameSource",
    "ImageError",
    "Picture",
    "Point",
    "PromptError",
    "Quad",
    "QwenVLEngine",
    "QwenVLError",
    "Ref",
    "Reply",
    "Stats",
    "Stream",
    "TokenLogprob",
    "ToolCall",
    "Turn",
    "Video",
    "load_picture",
    "open_video",
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
