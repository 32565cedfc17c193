"""Calibrated bundles: closer to the checkpoint than rounded ones, and exactly what the samples say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge.inputs.parts import Text
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.base import ImageFeatures
from qwenvl_edge_export.families.qwen_vl.reference import ntk_alpha
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization import activations as spool
from qwenvl_edge_export.quantization import calibration as calibrate
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.streamed_reference import add_deepstack
from support.calibration import INT4, builder_of
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint
from support.reference import load_model, pixels_of


@pytest.fixture(scope="module")
def by_default(checkpoint):
    """Calibrated by the built-in samples."""
    return export(checkpoint, checkpoint.with_name("by_default"), precision=INT4, calibration=True, allow_loss=True)


def divergence(bundle):
    return np.mean([row["kl"] for row in bundle.manifest.parity["stages"] if "kl" in row])


def test_calibration_loses_less_than_rounding(checkpoint, by_default):
    """On prompts and pictures that are not among the samples."""
    rounded = export(checkpoint, checkpoint.with_name("rounded"), precision=INT4, allow_loss=True)
    assert divergence(by_default) < 0.5 * divergence(rounded)
    assert (rounded.manifest.precision.method, by_default.manifest.precision.method) == ("rtn", "gptq")
    assert rounded.manifest.sensitivity == {}


def test_the_sensitivity_of_every_layer_is_reported(by_default):
    found = by_default.manifest.sensitivity
    layers = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
    assert set(found) == {f"transformer.h.{i}.{name}.weight" for i in range(2) for name in layers}
    assert all(0 < each["calibrated"] < each["rtn"] < 0.2 for each in found.values())
    assert not by_default.path.with_name("by_default.calibration").exists()
    Bundle.open(by_default.path).check_files()


def test_the_samples_matter_and_the_result_is_repeatable(checkpoint, by_default, tmp_path):
    lines = [{"prompt": f"Count to {i}.", "answer": "1 2 3"} for i in range(4)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    options = {"precision": INT4, "check": False}
    own = export(checkpoint, tmp_path / "own", calibration=tmp_path / "own.jsonl", **options)
    again = export(checkpoint, tmp_path / "again", calibration=True, **options)
    assert again.manifest.files == by_default.manifest.files
    assert own.manifest.files["decoder.data"] != by_default.manifest.files["decoder.data"]


def test_kept_layers_are_not_calibrated(checkpoint, tmp_path):
    kept = ExportPrecision.choose("int4", vision="fp32", block=32, keep=["*.h.0.*", "*.mlp.*"])
    found = export(checkpoint, tmp_path / "kept", precision=kept, calibration=True, check=False)
    assert set(found.manifest.sensitivity) == {f"transformer.h.1.attn.{name}.weight" for name in ("c_attn", "c_proj")}


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.1.mlp.w2.weight",
        "transformer.visual.transformer.resblocks.1.mlp.c_fc.weight",
        "transformer.wte.weight",
        "lm_head.weight",
    ],
)
def test_infinity_in_a_tensor_names_it(samples, tmp_path, name):
    tensors = random_tensors(config_dict())
    tensors[name][:] = float("inf")
    source = write_checkpoint(tmp_path / "broken", tensors=tensors)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=rf"{name} holds NaN or infinity"):
        export(source, tmp_path / "out" / "bundle", precision=INT4, calibration=samples)
    assert not (tmp_path / "out" / "bundle").exists()


def test_nothing_to_calibrate(checkpoint, tmp_path):
    with pytest.raises(QwenVLError, match="nothing to calibrate at fp32; choose --precision int4, int8 or w8a8"):
        export(checkpoint, tmp_path / "bundle", precision=ExportPrecision.choose("fp32"), calibration=True)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_left_out_are_said(checkpoint, tmp_path):
    """While the others are encoded, in what a terminal's line has room for."""
    (tmp_path / "shots").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "shots" / "a.png")
    (tmp_path / "shots" / "b.png").write_text("no picture")
    said = []
    options = {"precision": INT4, "allow_loss": True, "check": False}
    export(checkpoint, tmp_path / "b", calibration=tmp_path / "shots", progress=lambda *c: said.append(c[2]), **options)
    assert said[0] == "encoding, 1 of 2 pictures unreadable"


def test_progress_says_how_far_and_how_long(checkpoint, tmp_path, monkeypatch):
    """The time left is that of the layers so far, times those to come."""
    cases = read_samples(None, builder_of(checkpoint))[-2:]
    clock, told = SimpleNamespace(seconds=0.0), []
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: clock.seconds)
    layer = calibrate.Calibration._layer

    def slow(self, i):
        layer(self, i)
        clock.seconds += 45 if i < 2 else 240

    monkeypatch.setattr(calibrate.Calibration, "_layer", slow)
    deep = write_checkpoint(tmp_path / "deep", raw=config_dict(num_hidden_layers=5))
    arguments = (Checkpoint.open(deep), INT4, cases, tmp_path / "work")
    calibrate.Calibration(*arguments, lambda *call: told.append(call)).run()
    assert told == [
        (0, 5, "encoding the calibration samples"),
        (0, 5, "calibrating layer 1 of 5"),
        (1, 5, "calibrating layer 2 of 5, 3 min left"),
        (2, 5, "calibrating layer 3 of 5, 2 min left"),
        (3, 5, "calibrating layer 4 of 5, 4 min left"),
        (4, 5, "calibrating layer 5 of 5, 2 min left"),
    ]


def test_deepstack_features_are_added_after_their_layers(checkpoint, tmp_path):
    """As the streamed reference adds them; they are there when a calibration goes on."""
    image = Image.new("RGB", (20, 10))
    builder = builder_of(checkpoint)
    case = builder.case("two", (load_picture(image), load_picture(image), Text("What?")), (), "")
    length = len(case.prompt.ids)
    features = [
        ImageFeatures(torch.zeros(span.length, 8), torch.randn(2, span.length, 8)) for span in case.prompt.spans
    ]
    spool.Spool(tmp_path, [length], 8).keep_deepstack(3, features)
    for layer in range(3):
        rows, expected = torch.ones(length, 8), torch.ones(length, 8)
        add_deepstack(expected, case.prompt, features, layer)
        spool.Spool(tmp_path, [length], 8).add_deepstack(3, case.prompt, rows, layer)
        assert torch.equal(rows, expected) and torch.equal(rows, torch.ones(length, 8)) == (layer == 2)
    spool.Spool(tmp_path, [length], 8).add_deepstack(2, case.prompt, rows, 0)
    assert torch.equal(rows, expected)


def test_progress_of_the_encoding(checkpoint, tmp_path, monkeypatch):
    clock, told = SimpleNamespace(seconds=0.0), []

    def later():
        clock.seconds += 6
        return clock.seconds

    monkeypatch.setattr(calibrate.time, "monotonic", later)
    cases = read_samples(None, builder_of(checkpoint))[-4:]
    arguments = (Checkpoint.open(checkpoint), INT4, cases, tmp_path / "work")
    calibrate.Calibration(*arguments, lambda *call: told.append(call[2])).run()
    assert told[:2] == ["encoding the calibration samples", "encoding sample 3 of 4, 12 s left"]


def test_layers_compute_as_the_model_does(checkpoint, tmp_path):
    """Unquantized, the spooled activations are those of the reference model."""
    path = Checkpoint.open(checkpoint)
    cases = read_samples(None, builder_of(checkpoint))[:3]
    floats = ExportPrecision.choose("int8", keep=["*"])
    run = calibrate.Calibration(path, floats, cases, tmp_path / "work", lambda *_: None)
    run.run()
    model = load_model(path)
    found = np.fromfile(tmp_path / "work" / "activations-2.f32", np.float32).reshape(-1, 128)
    start = 0
    for case in cases:
        ids = torch.from_numpy(np.concatenate([case.prompt.ids, case.answer]))[None]
        with torch.no_grad():
            features = model.encode_images(torch.from_numpy(pixels_of(case))) if case.pictures else None
            embeds = model.embed(ids, features)
            alpha = ntk_alpha(len(case.prompt.ids), path.family.config.seq_length)
            expected = model.decode(embeds, alpha=alpha)[0][0]
            rows = torch.from_numpy(found[start : start + ids.shape[1]])
            torch.testing.assert_close(model.lm_head(model.transformer.ln_f(rows)), expected, rtol=0, atol=1e-4)
        start += ids.shape[1]
