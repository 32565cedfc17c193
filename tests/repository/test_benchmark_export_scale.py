"""benchmarks/export_scale.py: the disk that an export holds while it runs, and the whole of it on the tiny preset."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.patience import PATIENCE_S

BENCHMARKS = ROOT / "benchmarks"
WRITES = """
import os, sys, time
folder = sys.argv[1] + ".partial-1"
os.mkdir(folder)
with open(folder + "/large", "wb") as file:
    file.write(bytes(3 << 20))
time.sleep(0.4)
os.remove(folder + "/large")
os.rename(folder, sys.argv[1])
"""


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import processes

    return processes


def test_blocks_are_counted_and_each_file_once(processes, tmp_path):
    for name in ("bundle", "bundle.partial-1", "bundle-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle" / "some").write_bytes(bytes(1 << 20))
    os.link(tmp_path / "bundle" / "some", tmp_path / "bundle.partial-1" / "other")
    (tmp_path / "bundle-2" / "foreign").write_bytes(bytes(1 << 20))
    with (tmp_path / "bundle" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert processes.allocated_bytes(tmp_path / "bundle") == pytest.approx(1 << 20, rel=0.1)
    assert processes.allocated_bytes(tmp_path / "nowhere") == 0


def test_the_peak_is_seen_though_the_file_goes(processes, tmp_path):
    found = processes.run([sys.executable, "-c", WRITES, str(tmp_path / "bundle")], made=tmp_path / "bundle")
    assert found["peak_disk_gb"] == pytest.approx((3 << 20) / 1e9, rel=0.1)
    assert list((tmp_path / "bundle").iterdir()) == []


def test_a_calibrated_export_takes_the_result_and_little_more(tmp_path):
    pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")
    options = ["--preset", "tiny", "--precision", "int4", "--calibrate", "2", "--json", str(tmp_path / "figures.json")]
    command = [sys.executable, str(BENCHMARKS / "export_scale.py"), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True)
    headline = json.loads(done.stdout.splitlines()[-1])
    assert headline == json.loads((tmp_path / "figures.json").read_text())["headline"]
    # Blocks of 4 KiB for some 15 files, and what flows between two layers.
    assert headline["disk_gb"] <= headline["peak_disk_gb"] < headline["disk_gb"] + 5e-4
