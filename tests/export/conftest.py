"""What tests of exports share."""

from pathlib import Path

import pytest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to export to: in a folder that holds nothing else."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "bundle"
