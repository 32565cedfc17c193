"""The reference network of a checkpoint with its weights in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
from qwenvl_edge_export.verification.cases import Case


def load_model(checkpoint: Checkpoint) -> QwenVLNetwork:
    """The network in float32, ready for inference."""
    return QwenVLNetwork.load(checkpoint.family.config, checkpoint.tensor)


def pixels_of(case: Case) -> npt.NDArray[np.float32]:
    """The pixel_values [N, 3, S, S] of a case that has pictures."""
    return np.concatenate([picture.arrays[PIXEL_VALUES] for picture in case.pictures])
