from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # the scripted engine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of models/nano."""
    exporter = pytest.importorskip("qwenvl_edge_export.exporter", reason="exporting needs PyTorch")
    folder: Path = exporter.export(
        ROOT / "models" / "nano", tmp_path_factory.mktemp("nano") / "bundle", check=False
    ).path
    return folder
