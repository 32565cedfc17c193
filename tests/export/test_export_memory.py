"""An export with its verification under a limit on the process's anonymous memory: 2.5 GB and a layer in float32."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from support.paths import ROOT
from support.patience import PATIENCE_S
from tools.synthetic_checkpoint import write


def layer_bytes(checkpoint: Path) -> int:
    """A decoder layer in float32."""
    layer = Checkpoint.open(checkpoint).family.decoder.layers[0]
    return sum(4 * weight.shape[0] * weight.shape[-1] for group in layer.groups for weight in group.weights)


def export(checkpoint: Path, bundle: Path, limit_bytes: int) -> dict[str, Any]:
    """The record of parity of a bundle; the process that exports it is killed once its anonymous memory passes a limit.

    RLIMIT_DATA would count a checkpoint's private mapping as well.
    """
    command = [sys.executable, "-m", "qwenvl_edge.cli", "export", str(checkpoint), str(bundle), "--allow-loss"]
    process = subprocess.Popen(command)
    until = time.monotonic() + 3 * PATIENCE_S
    try:
        while process.poll() is None:
            found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            used = int(found[1]) * 1024 if found else 0
            assert used <= limit_bytes and time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    parity: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())["parity"]
    return parity


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
    assert {"standard", "onnxruntime"} <= decoders


def test_nano_is_verified_within_the_same_limit(tmp_path):
    nano = ROOT / "models" / "nano"
    parity = export(nano, tmp_path / "bundle", int(2.5e9) + layer_bytes(nano))
    assert parity["passed"]
