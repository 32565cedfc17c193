"""models/nano in every precision: within its limits, and calibration on its own kind of pictures loses least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge_export.exporter import export
from qwenvl_edge_export.precision import ExportPrecision
from tools.nano.calibration import write

NANO = Path(__file__).parents[2] / "models" / "nano"
pytestmark = pytest.mark.skipif(not (NANO / "config.json").is_file(), reason="models/nano holds no checkpoint yet")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precisions")
    samples = write(folder / "samples", 64)
    kept = {name: ExportPrecision.choose(name) for name in ("fp16", "int8", "w8a8")}
    made = {name: export(NANO, folder / name, precision=precision) for name, precision in kept.items()}
    # Near its limit on some prompts: GPTQ makes other integers of sums in another order, so KL is 0.03 to 0.08 there.
    # With blocks of 32 the two differ by more than that.
    int4, small = ExportPrecision.choose("int4"), ExportPrecision.choose("int4", block=32)
    made["int4"] = export(NANO, folder / "int4", precision=int4, calibration=samples, allow_loss=True)
    made["rounded"] = export(NANO, folder / "rounded", precision=small, allow_loss=True)
    made["calibrated"] = export(NANO, folder / "calibrated", precision=small, calibration=samples, allow_loss=True)
    return made


def divergence(bundle):
    return np.mean([row["kl"] for row in bundle.manifest.parity["stages"] if "kl" in row])


@pytest.mark.parametrize("name", ["fp16", "int8", "w8a8"])
def test_losses_are_within_the_limits(bundles, name):
    assert bundles[name].manifest.parity["passed"]


@pytest.mark.parametrize("name", ["fp16", "int8", "w8a8", "int4", "rounded"])
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


@pytest.mark.parametrize("name", ["fp16", "int8", "w8a8", "int4", "rounded"])
def test_every_precision_answers(bundles, name):
    engine = QwenVLEngine(bundles[name], threads=1, max_context=1024)
    reply = engine.chat("What colour is the car?", images=[NANO / "demo.png"], do_sample=False)
    assert reply.finish_reason == "stop"
    assert reply.text
