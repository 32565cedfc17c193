"""Calibrated bundles: closer to the checkpoint than rounded ones, resumable, and exactly what the samples say."""

from __future__ import annotations

import errno
import json
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BundleError, CheckpointError, ImageError, QwenVLError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.inputs.prompt import Text
from qwenvl_edge_export import export as exporter
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.base import ImageFeatures
from qwenvl_edge_export.families.qwen_vl.reference import ntk_alpha
from qwenvl_edge_export.graphs import data_file as weights
from qwenvl_edge_export.graphs.weight_layout import ALIGNMENT_BYTES
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization import activations as spool
from qwenvl_edge_export.quantization import calibration as calibrate
from qwenvl_edge_export.quantization import results as kept
from qwenvl_edge_export.quantization.gptq import Rounding
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.cases import source_case_builder
from qwenvl_edge_export.verification.streamed_reference import add_deepstack
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint
from support.reference import load_model, pixels_of

INT4 = ExportPrecision.choose("int4", vision="fp32", block=32)
LAYER_BYTES = (128 * 384 + 128 * 128 + 3 * 128 * 96) * (4 + 1) // 8  # integers, and 32 bits of scale every 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("calibrated") / "checkpoint")


@pytest.fixture(scope="module")
def calibrated(checkpoint):
    return export(checkpoint, checkpoint.with_name("calibrated"), precision=INT4, calibration=True, allow_loss=True)


def builder_of(path):
    return source_case_builder(Checkpoint.open(path))


def interrupted(quantize, call=17):
    """`quantize`, interrupted at one of its calls, two for each of a layer's five weights: in the second layer."""
    seen = []

    def function(*arguments):
        seen.append(1)
        if len(seen) == call:
            raise KeyboardInterrupt
        return quantize(*arguments)

    return function


def cut(float_pieces, call):
    """`float_pieces`, of which one call's result is interrupted when it is written: behind other tensors."""
    seen = []

    def function(*arguments):
        seen.append(1)
        if len(seen) == call:
            raise KeyboardInterrupt
        yield from float_pieces(*arguments)

    return function


def divergence(bundle):
    return np.mean([row["kl"] for row in bundle.manifest.parity["stages"] if "kl" in row])


def test_calibration_loses_less_than_rounding(checkpoint, calibrated):
    """On prompts and pictures that are not among the samples."""
    rounded = export(checkpoint, checkpoint.with_name("rounded"), precision=INT4, allow_loss=True)
    assert divergence(calibrated) < 0.5 * divergence(rounded)
    assert (rounded.manifest.precision.method, calibrated.manifest.precision.method) == ("rtn", "gptq")
    assert rounded.manifest.sensitivity == {}


def test_the_sensitivity_of_every_layer_is_reported(calibrated):
    found = calibrated.manifest.sensitivity
    layers = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
    assert set(found) == {f"transformer.h.{i}.{name}.weight" for i in range(2) for name in layers}
    assert all(0 < each["calibrated"] < each["rtn"] < 0.2 for each in found.values())
    assert not calibrated.path.with_name("calibrated.calibration").exists()
    Bundle.open(calibrated.path).check_files()


def test_the_samples_matter_and_the_result_is_repeatable(checkpoint, calibrated, tmp_path):
    lines = [{"prompt": f"Count to {i}.", "answer": "1 2 3"} for i in range(4)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    options = {"precision": INT4, "allow_loss": True}
    own = export(checkpoint, tmp_path / "own", calibration=tmp_path / "own.jsonl", **options)
    again = export(checkpoint, tmp_path / "again", calibration=True, **options)
    assert again.manifest.files == calibrated.manifest.files
    assert own.manifest.files["decoder.data"] != calibrated.manifest.files["decoder.data"]


def test_kept_layers_are_not_calibrated(checkpoint, tmp_path):
    kept = ExportPrecision.choose("int4", vision="fp32", block=32, keep=["*.h.0.*", "*.mlp.*"])
    found = export(checkpoint, tmp_path / "kept", precision=kept, calibration=True, allow_loss=True)
    assert set(found.manifest.sensitivity) == {f"transformer.h.1.attn.{name}.weight" for name in ("c_attn", "c_proj")}


# While the bundle is written: its first weights, those beside the calibrated ones, and behind them, in both folders.
STAGES = {"writing vision.data": 5, "writing decoder.data": 5, "writing embedding.bin": 1}


@pytest.mark.parametrize("stage", ["layer", "keeping", *STAGES])
def test_an_interrupted_calibration_goes_on(checkpoint, calibrated, tmp_path, monkeypatch, stage):
    target, folder = tmp_path / "bundle", tmp_path / "bundle.calibration"
    quantize, seen, told = Rounding.quantize, [], []

    def progress(done, total, what):
        told.append(what)
        if what == stage and told.count(what) == STAGES[stage]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "layer":
            patch.setattr(Rounding, "quantize", interrupted(quantize))
        elif stage == "keeping":
            patch.setattr(kept, "float_pieces", cut(kept.float_pieces, call=7))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, target, precision=INT4, calibration=True, allow_loss=True, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    monkeypatch.setattr(Rounding, "quantize", lambda *arguments: seen.append(2) or quantize(*arguments))
    resumed = export(checkpoint, target, precision=INT4, calibration=True, allow_loss=True)
    assert seen.count(2) == (0 if stage in STAGES else 10)
    assert resumed.manifest.files == calibrated.manifest.files
    assert resumed.manifest.sensitivity == calibrated.manifest.sensitivity
    assert not folder.exists()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_is_kept_is_no_larger_than_in_the_bundle(checkpoint, tmp_path, target):
    cases = read_samples(None, builder_of(checkpoint))[-2:]
    precision = ExportPrecision.choose("int4", target=target, head="int4").of_groups(32)
    run = calibrate.Calibration(Checkpoint.open(checkpoint), precision, cases, tmp_path / "work", lambda *_: None)
    run.run()
    assert run.kept.bytes_in_place == 2 * LAYER_BYTES * (4.5 / 5 if target == "gpu" else 1)
    tensors = 2 * 2 * 5
    found = allocated(tmp_path / "work" / "decoder.data")
    assert run.kept.bytes_in_place <= found < run.kept.bytes_in_place + tensors * ALIGNMENT_BYTES
    assert sum(path.stat().st_size for path in (tmp_path / "work").glob("layer-*")) < 2000
    name = "transformer.h.1.mlp.c_proj.weight"
    weight = run.checkpoint.tensor(name)
    assert 0.01 < (run.kept.integers(name).floats() - weight).norm() / weight.norm() < 0.2


def allocated(path):
    return path.stat().st_blocks * 512


def test_no_weight_lies_on_the_disk_twice(checkpoint, tmp_path):
    """Whenever a piece of the bundle has been written, it and what calibration keeps take no more than the result."""
    seen = []

    def progress(done, total, what):
        if what.startswith(("writing", "hashing")):
            seen.append(sum({path.stat().st_ino: allocated(path) for path in tmp_path.glob("bundle*/*")}.values()))

    export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, check=False, progress=progress)
    cases = read_samples(None, builder_of(checkpoint))
    activations = 4 * 128 * sum(len(case.prompt.ids) + len(case.answer) for case in cases)
    result = sum(map(allocated, (tmp_path / "bundle").iterdir()))
    assert max(seen) <= result + activations + 4 * 4096  # the JSON files beside them


def test_a_file_system_without_second_names(checkpoint, calibrated, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(kept.os, "link", refuse)
    found = export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, check=False)
    assert found.manifest.files == calibrated.manifest.files
    Bundle.open(found.path).check_files()


def test_a_finished_bundle_is_not_written_to(checkpoint, calibrated, tmp_path, monkeypatch):
    """A run that was killed before it could remove its folder shares a file with the bundle that it made."""
    with monkeypatch.context() as patch:
        patch.setattr(calibrate.Calibration, "remove", lambda self: None)
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, check=False)
    finished, left = tmp_path / "bundle" / "decoder.data", tmp_path / "bundle.calibration" / "decoder.data"
    assert finished.samefile(left)
    (tmp_path / "bundle").rename(tmp_path / "first")
    before = (tmp_path / "first" / "decoder.data").stat()
    monkeypatch.setattr(Rounding, "quantize", lambda *arguments: pytest.fail("calibrated again"))
    again = export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, check=False)
    after = (tmp_path / "first" / "decoder.data").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert after.st_ino != finished.stat().st_ino
    assert again.manifest.files == calibrated.manifest.files
    again.check_files()


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_folder_that_lost_its_integers_starts_anew(checkpoint, calibrated, begun, harm):
    path = begun / "decoder.data"
    if harm == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    again = export(checkpoint, begun.with_name("bundle"), precision=INT4, calibration=True, check=False)
    assert again.manifest.files == calibrated.manifest.files


def test_the_disk_need_not_hold_twice_what_is_kept(checkpoint, calibrated, tmp_path, monkeypatch):
    files = calibrated.manifest.files
    needed = sum(files[name].size for name in ("vision.data", "decoder.data", "embedding.bin")) - 2 * LAYER_BYTES
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    options = {"precision": INT4, "calibration": tmp_path / "own.jsonl", "check": False}
    monkeypatch.setattr(exporter.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(BundleError, match=r"the bundle takes .* GB, but the disk of"):
        export(checkpoint, tmp_path / "bundle", **options)
    monkeypatch.setattr(exporter.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    export(checkpoint, tmp_path / "bundle", **options)


def test_results_of_other_settings_are_kept(checkpoint, calibrated, begun):
    """They are refused with what differs, given up when asked, and until then can be finished."""
    target, wider = begun.with_name("bundle"), ExportPrecision.choose("int8", vision="fp32", block=32)
    options = {"precision": wider, "calibration": True, "check": False}
    kept = {path.name: path.stat().st_mtime_ns for path in begun.iterdir()}
    said = (
        r'bundle.calibration" holds a calibration of which 1 layers are done, with another precision; finish it .*'
        r"or give it up with --restart-calibration\.$"
    )
    with pytest.raises(BundleError, match=said):
        export(checkpoint, target, **options)
    assert {path.name: path.stat().st_mtime_ns for path in begun.iterdir()} == kept
    export(checkpoint, target, precision=INT4, check=False)  # needs no calibration, so it touches none
    assert {path.name: path.stat().st_mtime_ns for path in begun.iterdir()} == kept
    resumed = export(checkpoint, target, precision=INT4, calibration=True, check=False, force=True)
    assert resumed.manifest.files == calibrated.manifest.files


def test_results_of_other_settings_are_given_up_when_asked(checkpoint, begun):
    wider = ExportPrecision.choose("int8", vision="fp32", block=32)
    found = export(checkpoint, begun.with_name("bundle"), precision=wider, calibration=True, restart_calibration=True)
    assert found.manifest.parity["passed"]
    assert not begun.exists()


def test_a_folder_of_somebody_else_is_left_alone(checkpoint, tmp_path):
    """Such as the samples themselves."""
    samples = tmp_path / "bundle.calibration"
    samples.mkdir()
    Image.new("RGB", (20, 10)).save(samples / "a.png")
    with pytest.raises(BundleError, match="but it holds something else; move it away"):
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle.calibration", "a.png"]


def write_samples(folder, answer="1 2 3", prompt="ab", columns=1):
    """A line with a picture, whose size and sum stay what they are however its columns are turned."""
    pixels = np.random.default_rng(0).integers(0, 256, (42, 42, 3), np.uint8)
    Image.fromarray(np.roll(pixels, columns, axis=1)).save(folder / "own.png")
    line = {"image": "own.png", "prompt": prompt, "answer": answer}
    (folder / "own.jsonl").write_text(json.dumps(line))
    return folder / "own.jsonl"


@pytest.mark.parametrize("change", [{"answer": "3 1 2"}, {"prompt": "ba"}, {"columns": 21}])
def test_samples_of_equal_length_and_sum_are_not_taken_for_each_other(checkpoint, tmp_path, monkeypatch, change):
    quantize, seen = Rounding.quantize, []
    options = {"precision": INT4, "allow_loss": True, "check": False}
    with monkeypatch.context() as patch:
        patch.setattr(Rounding, "quantize", interrupted(Rounding.quantize))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, tmp_path / "bundle", calibration=write_samples(tmp_path), **options)
    monkeypatch.setattr(Rounding, "quantize", lambda *arguments: seen.append(2) or quantize(*arguments))
    samples = write_samples(tmp_path, **change)
    with pytest.raises(BundleError, match="with another set of samples; finish it"):
        export(checkpoint, tmp_path / "bundle", calibration=samples, **options)
    rerun = export(checkpoint, tmp_path / "bundle", calibration=samples, restart_calibration=True, **options)
    assert seen.count(2) == 20
    assert rerun.manifest.files == export(checkpoint, tmp_path / "fresh", calibration=samples, **options).manifest.files


def test_another_exporter_does_not_go_on(checkpoint, tmp_path, monkeypatch):
    """What an older version found may not be what this one would find."""
    cases = read_samples(None, builder_of(checkpoint))[-2:]
    told = []
    for version, restart in (("1", False), ("1", False), ("2", False), ("2", True)):
        monkeypatch.setattr(calibrate, "exporter_name", lambda version=version: version)
        arguments = (Checkpoint.open(checkpoint), INT4, cases, tmp_path / "work")
        run = calibrate.Calibration(*arguments, lambda *call: told.append(call[2]), restart=restart)
        with nullcontext() if (version, restart) != ("2", False) else pytest.raises(BundleError, match="version"):
            run.run()
    assert told.count("calibrating layer 1 of 2") == 2


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.1.mlp.w2.weight",
        "transformer.visual.transformer.resblocks.1.mlp.c_fc.weight",
        "transformer.wte.weight",
        "lm_head.weight",
    ],
)
def test_infinity_in_a_tensor_names_it(tmp_path, name):
    tensors = random_tensors(config_dict())
    tensors[name][:] = float("inf")
    source = write_checkpoint(tmp_path / "broken", tensors=tensors)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=rf"{name} holds NaN or infinity"):
        export(source, tmp_path / "out" / "bundle", precision=INT4, calibration=True)
    assert not (tmp_path / "out" / "bundle").exists()


def test_too_little_disk_space_is_said_before_calibrating(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        BundleError, match=r"calibration takes .* GB beside the bundle, but the disk of .* 0\.00 GB free"
    ):
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def begun(checkpoint, tmp_path, monkeypatch):
    """A calibration that was interrupted in its second layer."""
    with monkeypatch.context() as patch:
        patch.setattr(Rounding, "quantize", interrupted(Rounding.quantize))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, check=False)
    return tmp_path / "bundle.calibration"


def test_too_little_disk_space_is_said_before_going_on(checkpoint, calibrated, begun, monkeypatch):
    """Of a calibration that is half done the other half's results are counted, and one file of activations."""
    (begun / "activations-9.partial").write_bytes(b"half")
    needed = (begun / "activations-1.f32").stat().st_size + LAYER_BYTES
    with monkeypatch.context() as patch:
        patch.setattr(calibrate.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
        with pytest.raises(BundleError, match=r"calibration takes .* GB beside the bundle, but the disk of"):
            export(checkpoint, begun.with_name("bundle"), precision=INT4, calibration=True)
        assert sorted(path.name for path in begun.iterdir()) == [
            *("activations-1.f32", "decoder.data", "key.json", "layer-0.json"),
        ]
    resumed = export(checkpoint, begun.with_name("bundle"), precision=INT4, calibration=True, allow_loss=True)
    assert resumed.manifest.files == calibrated.manifest.files


FULL = (errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "name", "calls", "error"),
    [
        (spool.os, "posix_fallocate", 1, OSError(*FULL)),
        (spool.os, "posix_fallocate", 2, OSError(*FULL)),
        (weights.os, "fsync", 1, OSError(*FULL)),
        (weights.os, "fsync", 2, OSError(*FULL)),
    ],
)
def test_a_disk_that_fills_while_calibrating(checkpoint, calibrated, tmp_path, monkeypatch, where, name, calls, error):
    """The kept results and the reserved files may meet the disk's end; what was done before is kept."""
    function, seen = getattr(where, name), []

    def filling(*arguments):
        seen.append(1)
        if len(seen) == calls:
            raise error
        return function(*arguments)

    monkeypatch.setattr(where, name, filling, raising=False)
    begun = (name, calls) != ("posix_fallocate", 1)
    said = "the same command goes on with what is done" if begun else "nothing was left behind"
    with pytest.raises(BundleError, match=rf"calibration cannot write .*No space left on device.*; {said}\.$"):
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.calibration"] * begun
    assert not list(tmp_path.rglob("*.partial"))
    resumed = export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True, allow_loss=True)
    assert resumed.manifest.files == calibrated.manifest.files


def test_activations_are_reserved_on_the_disk(tmp_path):
    """So that a mapped file does not meet the disk's end; some file systems cannot."""
    rows = spool.Spool(tmp_path, [100, 28], 256)
    with rows.written(0):
        status = (tmp_path / "activations-0.partial").stat()
    assert status.st_size == 4 * 128 * 256 and status.st_blocks * 512 >= status.st_size
    assert not next(iter(rows.read(0))).any()


def test_a_file_system_that_cannot_reserve(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(spool.os, "posix_fallocate", refuse, raising=False)
    with spool.Spool(tmp_path, [3], 4).written(0) as written:
        next(written).fill_(2)
    assert (next(iter(spool.Spool(tmp_path, [3], 4).read(0))) == 2).all()


def test_nothing_to_calibrate(checkpoint, tmp_path):
    with pytest.raises(QwenVLError, match="nothing to calibrate at fp32; choose --precision int4, int8 or w8a8"):
        export(checkpoint, tmp_path / "bundle", precision=ExportPrecision.choose("fp32"), calibration=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pictures(checkpoint, tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    notes = []
    cases = read_samples(tmp_path, builder_of(checkpoint), notes.append)
    assert notes == ["1 of 3 pictures unreadable"]
    assert [len(case.pictures) for case in cases] == [1, 1]
    assert [case.prompt.turns for case in cases] == [3, 0]  # every second one is asked once, as most pictures are
    assert all(len(case.answer) > 5 for case in cases)
    assert list(cases[0].answer) != list(cases[1].answer)  # each time another question is the last one


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


def test_marks_that_windows_and_unicode_put_into_text(checkpoint, tmp_path):
    """A byte order mark, carriage returns, and a line separator within a string."""
    text = '\ufeff{"prompt": "a\u2028b"}\r\n{"prompt": "c"}\r\n'
    (tmp_path / "own.jsonl").write_bytes(text.encode())
    assert len(read_samples(tmp_path / "own.jsonl", builder_of(checkpoint))) == 2


def test_of_many_samples_evenly_spread_ones_are_taken(checkpoint, tmp_path):
    """As many as a number of tokens has room for; pictures of the others are not even read."""
    lines = [{"prompt": f"Count to {i:03}.", "image": [] if i % 8 == 0 else "missing.png"} for i in range(100)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    builder, notes = builder_of(checkpoint), []
    (one,) = read_samples(tmp_path / "own.jsonl", builder, notes.append, most_tokens=1)
    length = len(one.prompt.ids) + len(one.answer)
    cases = read_samples(tmp_path / "own.jsonl", builder, notes.append, most_tokens=10 * length)
    assert notes == ["1 of 100 samples", "10 of 100 samples"]
    numbers = [int(case.name.split()[1]) - 1 for case in cases]
    assert numbers == sorted(numbers) and max(np.diff(numbers)) <= 16 and numbers[-1] >= 80


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


def test_lines_with_pictures(checkpoint, tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "prompt": "What?", "answer": "A mug."},
        {"image": ["a.png", "a.png"], "prompt": "What?"},
        {"prompt": "Hello"},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cases = read_samples(tmp_path / "own.jsonl", builder_of(checkpoint))
    assert [len(case.pictures) for case in cases] == [1, 2, 0]
    assert [len(case.answer) for case in cases] == [7, 1, 1]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (None, QwenVLError, "there are no calibration samples at .*missing"),
        ("", QwenVLError, "holds no calibration sample"),
        ("{", QwenVLError, "line 1: it is not JSON"),
        ('{"prompt": "a"}\n["b"]', QwenVLError, 'line 2: it must be an object with "prompt"'),
        ('{"question": "a"}', QwenVLError, 'line 1: it must be an object with "prompt"'),
        ('{"image": "nowhere.png", "prompt": "a"}', ImageError, 'own.jsonl", line 1: .*nowhere.png'),
        ('{"image": 5, "prompt": "a"}', QwenVLError, 'own.jsonl", line 1: "image" must be a file\'s name or a list'),
        (
            '\n{"image": [5], "prompt": "a"}',
            QwenVLError,
            'own.jsonl", line 2: "image" must be a file\'s name or a list',
        ),
        ('{"image": null, "prompt": "a"}', QwenVLError, 'line 1: "image" must be .*; leave it out where there is none'),
        ('{"prompt": "a", "answer": null}', QwenVLError, 'own.jsonl", line 1: "answer" must be a text; leave it out'),
        ('{"prompt": "a", "answer": 5}', QwenVLError, 'own.jsonl", line 1: "answer" must be a text'),
        ('{"prompt": "a"}\n{"prompt": "\udcff"}', QwenVLError, 'own.jsonl", line 2: it is not UTF-8 .*at byte 12'),
    ],
)
def test_malformed_samples(checkpoint, tmp_path, content, error, match):
    path = tmp_path / ("missing" if content is None else "own.jsonl")
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(error, match=match):
        read_samples(path, builder_of(checkpoint))


def test_a_folder_without_a_picture(checkpoint, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(QwenVLError, match="holds no readable picture"):
        read_samples(tmp_path, builder_of(checkpoint))


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
