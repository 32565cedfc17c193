"""A small model and its calibrated bundle, made once; modules with checkpoints of their own override the first."""

import json

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge_export.export import export
from qwenvl_edge_export.quantization.gptq import Rounding
from support.calibration import INT4, interrupted
from support.random_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("calibrated") / "checkpoint")


@pytest.fixture(scope="session")
def samples(checkpoint):
    """A tenth of the built-in ones, for what does not depend on which they are."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(checkpoint.with_name("a.png"))
    lines = [
        {"image": "a.png", "prompt": "What is this?", "answer": "A mug."},
        {"prompt": "Count to 3.", "answer": "1 2 3"},
    ]
    path = checkpoint.with_name("own.jsonl")
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="session")
def calibrated(checkpoint, samples):
    """Calibrated by these samples; tests must not change it."""
    return export(checkpoint, checkpoint.with_name("calibrated"), precision=INT4, calibration=samples, check=False)


@pytest.fixture
def begun(checkpoint, samples, tmp_path, monkeypatch):
    """A calibration that was interrupted in its second layer."""
    with monkeypatch.context() as patch:
        patch.setattr(Rounding, "quantize", interrupted(Rounding.quantize))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples, check=False)
    return tmp_path / "bundle.calibration"
