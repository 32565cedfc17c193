"""Checkpoints on the disk, as checked, memory-mapped tensors."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Give Checkpoint, which loads PyTorch, when it is first asked for."""
    if name != "Checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwenvl_edge_export.checkpoint.reader import Checkpoint

    return Checkpoint
