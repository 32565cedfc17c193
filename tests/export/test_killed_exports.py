"""An export that is killed leaves the old bundle, the new one or none, and the next run ends as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.random_checkpoint import write_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

PROGRAM = Path(__file__).parents[1] / "support" / "signalled_exports.py"
CALIBRATED = ["--precision", "int4", "--vision-precision", "fp32", "--calibrate", "--allow-loss"]
# Each with the signal, the audit event, what is among its arguments, and which occurrence it is.
REPLACING = [
    ("KILL", "os.mkdir", ".partial-", 1),
    ("KILL", "open", "decoder.data", 1),
    ("KILL", "open", "bundle.json", 1),
    ("KILL", "ctypes.dlsym", "renameat2", 1),
    ("KILL", "shutil.rmtree", ".partial-", 1),
    ("TERM", "open", "decoder.data", 1),
]
CALIBRATING = [
    ("KILL", "open", "activations-0", 1),
    ("KILL", "open", "key.partial", 1),
    ("KILL", "open", "layer-0.partial", 1),
    ("KILL", "os.remove", "activations-0.f32", 1),
    ("KILL", "os.rename", "layer-1.partial", 1),
    *(("KILL", "open", "decoder.data", nth) for nth in (1, 2, 3, 4)),  # made, a layer, the other one, the rest
    ("KILL", "os.link", "decoder.data", 1),
    ("KILL", "open", "embedding.bin", 1),  # of both names of decoder.data
    ("KILL", "os.rename", "bundle.partial-", 1),
    ("KILL", "shutil.rmtree", ".calibration", 2),
    ("HUP", "open", "layer-1.partial", 1),
    ("TERM", "open", "embedding.bin", 1),
]
RUNS = [(True, *each) for each in REPLACING] + [(False, *each) for each in CALIBRATING]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Every run in a folder of its own, with its exit code; the replacing ones found a bundle of another checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    checkpoint = write_checkpoint(folder / "checkpoint")
    old = export(write_checkpoint(folder / "other", seed=1), folder / "old", check=False)
    int4 = ExportPrecision.choose("int4", vision="fp32")
    options = {True: {"force": True}, False: {"precision": int4, "calibration": True, "force": True}}
    whole = {
        replacing: export(checkpoint, folder / f"whole-{replacing}", check=False, **options[replacing])
        for replacing in (True, False)
    }
    runs = []
    for i, (replacing, name, event, text, nth) in enumerate(RUNS):
        target = folder / str(i) / "bundle"
        target.parent.mkdir()
        if replacing:
            shutil.copytree(old.path, target)
        more = ["--force"] if replacing else CALIBRATED
        arguments = ["export", str(checkpoint), str(target), "--skip-verify", *more]
        number = getattr(signal, f"SIG{name}")
        runs.append({"arguments": arguments, "signal": number, "event": event, "text": text, "nth": nth})
    command = [sys.executable, str(PROGRAM)]
    found = subprocess.run(command, input=json.dumps(runs), stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    codes = json.loads(found.stdout.splitlines()[-1])
    return SimpleNamespace(folder=folder, checkpoint=checkpoint, old=old, whole=whole, options=options, codes=codes)


@pytest.mark.parametrize("i", range(len(RUNS)), ids=[" ".join(map(str, run[1:4])) for run in RUNS])
def test_old_new_or_none_and_the_next_run_is_whole(killed, i):
    replacing, name, *_ = RUNS[i]
    target = killed.folder / str(i) / "bundle"
    whole = killed.whole[replacing].manifest.files
    number = getattr(signal, f"SIG{name}")
    assert killed.codes[i] == (-number if name == "KILL" else 128 + number)
    if name != "KILL":
        assert names(target.parent) == (["bundle"] if replacing else ["bundle.calibration"])
    assert target.exists() or not replacing
    if target.exists():
        found = Bundle.open(target)
        found.check_files()
        assert found.manifest.files in (killed.old.manifest.files, whole)
    again = export(killed.checkpoint, target, check=False, **killed.options[replacing])
    again.check_files()
    assert again.manifest.files == whole
    if not replacing:
        assert again.manifest.sensitivity == killed.whole[replacing].manifest.sensitivity
    assert names(target.parent) == ["bundle"]
