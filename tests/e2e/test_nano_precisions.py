"""models/nano in every precision: within its limits, and calibration on its own kind of pictures loses least."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.cli import main
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.dialects import run_by_default
from support.paths import ROOT
from tools.nano.calibration import write

NANO = ROOT / "models" / "nano"
pytestmark = pytest.mark.skipif(not (NANO / "config.json").is_file(), reason="models/nano holds no checkpoint yet")


# As users export them; int4 on the built-in samples, since plainly rounded (blocks of 128) it is beyond its limits.
EXPORTS = {
    "fp16": ["--precision", "fp16"],
    "bf16": ["--precision", "bf16"],
    "int8": ["--precision", "int8"],
    "int8-kv8": ["--precision", "int8", "--kv-cache", "int8"],
    "w8a8": ["--precision", "w8a8"],
    "int4": ["--precision", "int4", "--calibrate"],
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precisions")
    for name, options in EXPORTS.items():
        assert main(["export", str(NANO), str(folder / name), *options]) == 0
    made = {name: Bundle.open(folder / name) for name in EXPORTS}
    # With blocks of 32 rounding and calibration differ by more than the sums' order makes of GPTQ's integers.
    small, samples = ExportPrecision.choose("int4", block=32), write(folder / "samples", 64)
    made["rounded"] = export(NANO, folder / "rounded", precision=small, allow_loss=True)
    made["calibrated"] = export(NANO, folder / "calibrated", precision=small, calibration=samples, allow_loss=True)
    return made


def divergence(bundle):
    return np.mean([row["kl"] for row in bundle.manifest.parity["stages"] if "kl" in row])


@pytest.mark.parametrize("name", EXPORTS)
def test_losses_are_within_the_limits(bundles, name):
    manifest = bundles[name].manifest
    assert manifest.parity["passed"]
    assert {row["graph"] for row in manifest.parity["stages"]} == {"vision", *run_by_default(manifest.graphs.decoder)}
    assert manifest.precision.decoder == EXPORTS[name][1]
    assert manifest.precision.kv_cache == ("int8" if name == "int8-kv8" else "float")
    methods = {"fp16": "", "bf16": "", "int4": "gptq", "w8a8": "smoothquant"}
    assert manifest.precision.method == methods.get(name, "rtn")


@pytest.mark.parametrize("name", [*EXPORTS, "rounded"])
def test_verification_compares_everything(bundles, name):
    rows = bundles[name].manifest.parity["stages"]
    assert all(-1 <= row["cosine"] <= 1 for row in rows)
    logits = [row for row in rows if row["stage"] == "logits"]
    assert all(row["kl"] >= 0 and 0 <= row["top1"] <= 1 and 0 <= row["agreed"] <= row["tokens"] for row in logits)
    overlaps = [row["iou"] for row in logits if row["case"] == "box"]
    assert len(overlaps) == len({row["graph"] for row in logits})
    assert min(overlaps) > 0.8  # nano knows the disc as a ball


def test_calibration_loses_less_than_rounding(bundles):
    assert divergence(bundles["calibrated"]) < 0.6 * divergence(bundles["rounded"])


# ONNX Runtime computes bfloat16 on GPUs only.
@pytest.mark.parametrize("name", [*(name for name in EXPORTS if name != "bf16"), "rounded"])
def test_every_precision_answers(bundles, name):
    engine = QwenVLEngine(bundles[name], threads=1, max_context=1024)
    reply = engine.chat("What colour is the car?", images=[NANO / "demo.png"], do_sample=False)
    assert reply.finish_reason == "stop"
    assert reply.text
