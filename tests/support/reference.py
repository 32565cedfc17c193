"""The reference network of a checkpoint with its weights in memory."""

from __future__ import annotations

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork


def load_model(checkpoint: Checkpoint) -> QwenVLNetwork:
    """The network in float32, ready for inference."""
    return QwenVLNetwork.load(checkpoint.family.config, checkpoint.tensor)
