"""models/nano in every precision: within its limits, and calibration on its own kind of pictures loses least."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.calls import PROMPT_ROWS
from qwenvl_edge_export.verification.cases import case_builder
from qwenvl_edge_export.verification.float_range import STAGE as FLOAT_RANGE
from qwenvl_edge_export.verification.graph_runner import PIECE_BYTES
from qwenvl_edge_export.verification.limits import divergence as kl_divergence
from qwenvl_edge_export.verification.sides import GraphSide
from qwenvl_edge_export.verification.streamed_reference import Asked, StreamedReference
from support.dialects import run_by_default
from support.paths import ROOT
from tools.nano.calibration import write

NANO = ROOT / "models" / "nano"
pytestmark = pytest.mark.skipif(not (NANO / "config.json").is_file(), reason="models/nano holds no checkpoint yet")


# As users export them; int4 on the built-in samples, since plainly rounded (blocks of 128) it is beyond its limits.
EXPORTS = {
    "fp16": {},
    "bf16": {},
    "int8": {},
    "int8-kv8": {"kv_cache": "int8"},
    "w8a8": {},
    "int4": {"calibration": True},
}
# With blocks of 32 rounding and calibration differ by more than the sums' order makes of GPTQ's integers.
SMALL = {"block": 32}
PICTURED = ("pictures, history", "box")  # verification's prompts with pictures; "text" has none


@pytest.fixture
def bundle(nano_exports):
    """Gives a bundle of EXPORTS, or the "rounded" one, by its name."""

    def get(name):
        if name == "rounded":
            return nano_exports("int4", check=True, **SMALL)
        return nano_exports(name.partition("-")[0], check=True, **EXPORTS[name])

    return get


def divergence(bundle):
    return np.mean([row["kl"] for row in bundle.manifest.parity["stages"] if "kl" in row])


@pytest.mark.parametrize("name", EXPORTS)
def test_losses_are_within_the_limits(bundle, name):
    manifest = bundle(name).manifest
    assert manifest.parity["passed"]
    assert {row["graph"] for row in manifest.parity["stages"]} == {"vision", *run_by_default(manifest.graphs.decoder)}
    assert manifest.precision.decoder == name.partition("-")[0]
    assert manifest.precision.kv_cache == ("int8" if name == "int8-kv8" else "float")
    methods = {"fp16": "", "bf16": "", "int4": "gptq", "w8a8": "smoothquant"}
    assert manifest.precision.method == methods.get(name, "rtn")


@pytest.mark.parametrize("name", [*EXPORTS, "rounded"])
def test_verification_compares_everything(bundle, name):
    manifest = bundle(name).manifest
    stages = manifest.parity["stages"]
    rows = [row for row in stages if row["stage"] != FLOAT_RANGE]
    assert len(stages) - len(rows) == (name == "fp16")  # what the picture side may overflow in
    graphs = run_by_default(manifest.graphs.decoder)
    compared = [(row["stage"], row["graph"], row["case"]) for row in rows]
    expected = {("logits", graph, case) for graph in graphs for case in ("text", *PICTURED)}
    expected |= {("image features", "vision", case) for case in PICTURED}
    assert len(compared) == len(expected) and set(compared) == expected
    # Every precision but fp32 loses something; nothing at all would be a comparison of the reference with itself.
    assert all(row["max_abs"] > 0 for row in rows)
    logits = [row for row in rows if row["stage"] == "logits"]
    assert all(row["kl"] > 0 and row["tokens"] == 24 for row in logits)
    overlaps = {row["graph"]: row["iou"] for row in logits if row["case"] == "box"}
    assert set(overlaps) == graphs
    assert min(overlaps.values()) > 0.8  # nano knows the disc as a ball


def test_fewer_bits_lose_more(bundle):
    fp16, int8, int4 = (divergence(bundle(name)) for name in ("fp16", "int8", "int4"))
    assert 20 * fp16 < int8 and 5 * int8 < int4
    half = bundle("fp16").manifest.parity["stages"]
    assert all(row["agreed"] == row["tokens"] and row["top1"] == 1 for row in half if row["stage"] == "logits")


def loss(bundle, cases):
    """Mean KL divergence from PyTorch of the answers of `cases`."""
    reference = StreamedReference(Checkpoint.open(NANO))
    side = GraphSide(bundle, "onnxruntime", budget_bytes=PIECE_BYTES)

    def texts(encode):
        return [Asked(case.prompt, encode(case), [case.answer]) for case in cases]

    wanted = reference.logits(texts(lambda case: [reference.encode(each) for each in case.pictures]), PROMPT_ROWS)
    found = side.logits(texts(lambda case: side.encode(case.pictures, lambda: None)), lambda: None)
    return np.mean([kl_divergence(ours, theirs) for (ours,), (theirs,) in zip(found, wanted, strict=True)])


def test_calibration_loses_less_than_rounding(bundle, tmp_path):
    """On pictures of the calibrated kind that calibration did not see."""
    lines = write(tmp_path / "samples", 28).read_text(encoding="utf-8").splitlines(keepends=True)
    seen, unseen = (tmp_path / "samples" / name for name in ("seen.jsonl", "unseen.jsonl"))
    seen.write_text("".join(lines[:16]), encoding="utf-8")
    unseen.write_text("".join(lines[16:]), encoding="utf-8")
    precision, rounded = ExportPrecision.choose("int4", **SMALL), bundle("rounded")
    calibrated = export(NANO, tmp_path / "calibrated", precision=precision, calibration=seen, allow_loss=True)
    cases = read_samples(unseen, case_builder(rounded))
    assert loss(calibrated, cases) < 0.6 * loss(rounded, cases)


# ONNX Runtime computes bfloat16 on GPUs only.
@pytest.mark.parametrize("name", [*(name for name in EXPORTS if name != "bf16"), "rounded"])
def test_every_precision_answers(bundle, name):
    engine = QwenVLEngine(bundle(name), threads=1, max_context=1024)
    reply = engine.chat("What colour is the car?", images=[NANO / "demo.png"], do_sample=False)
    assert (reply.text, reply.finish_reason) == ("Blue.", "stop")
