"""An export with its verification under a limit on the process's anonymous memory: 2.5 GB and a layer in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from support.paths import ROOT
from support.patience import PATIENCE_S
from tools.synthetic_checkpoint import write

# RLIMIT_DATA counts private writable pages as they are reserved, mapped files not: a little more than what is used.
EXPORT = """
import resource, sys
from qwenvl_edge.cli import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(main(["export", *sys.argv[2:], "--allow-loss"]))
"""


def layer_bytes(checkpoint: Path) -> int:
    """A decoder layer in float32."""
    layer = Checkpoint.open(checkpoint).family.decoder.layers[0]
    return sum(4 * weight.shape[0] * weight.shape[-1] for group in layer.groups for weight in group.weights)


def export(checkpoint: Path, bundle: Path, limit_bytes: int) -> dict[str, object]:
    """The record of parity of a bundle that a limited process exported."""
    command = [sys.executable, "-c", EXPORT, str(limit_bytes), str(checkpoint), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((bundle / "bundle.json").read_text())["parity"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Three layers of the full-size model: 2.4 GB in float32 if the portable graph were loaded whole."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    write(folder, "wide")
    return folder


def test_a_wide_model_is_verified_within_a_layers_memory(wide, tmp_path):
    layer = layer_bytes(wide)
    assert 3 * layer > 2.4e9
    parity = export(wide, tmp_path / "bundle", int(2.5e9) + layer)
    decoders = {stage["graph"] for stage in parity["stages"] if stage["stage"] == "logits"}
    assert {"standard", "onnxruntime"} <= decoders and parity["passed"]


def test_nano_is_verified_within_the_same_limit(tmp_path):
    nano = ROOT / "models" / "nano"
    parity = export(nano, tmp_path / "bundle", int(2.5e9) + layer_bytes(nano))
    assert parity["passed"]
