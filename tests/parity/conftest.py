"""A small model and its calibrated bundle, made once; modules with checkpoints of their own override the first."""

import pytest

from qwenvl_edge_export.export import export
from qwenvl_edge_export.quantization.gptq import Rounding
from support.calibration import INT4, interrupted
from support.random_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("calibrated") / "checkpoint")


@pytest.fixture(scope="session")
def calibrated(checkpoint):
    """Tests must not change it."""
    return export(checkpoint, checkpoint.with_name("calibrated"), precision=INT4, calibration=True, allow_loss=True)


@pytest.fixture
def begun(checkpoint, tmp_path, monkeypatch):
    """A calibration that was interrupted in its second layer."""
    with monkeypatch.context() as patch:
        patch.setattr(Rounding, "quantize", interrupted(Rounding.quantize))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, check=False)
    return tmp_path / "bundle.calibration"
