"""An interrupted calibration goes on with what is done, and with nothing that other settings found."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.errors import BundleError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization import calibration as calibrate
from qwenvl_edge_export.quantization import results as kept
from qwenvl_edge_export.quantization.gptq import Rounding
from qwenvl_edge_export.quantization.samples import read_samples
from support.calibration import INT4, builder_of, interrupted


def cut(float_pieces, call):
    """`float_pieces`, of which one call's result is interrupted when it is written: behind other tensors."""
    seen = []

    def function(*arguments):
        seen.append(1)
        if len(seen) == call:
            raise KeyboardInterrupt
        yield from float_pieces(*arguments)

    return function


# While the bundle is written: its first weights, those beside the calibrated ones, and behind them, in both folders.
STAGES = {"writing vision.data": 5, "writing decoder.data": 5, "writing embedding.bin": 1}


@pytest.mark.parametrize("stage", ["layer", "keeping", *STAGES])
def test_an_interrupted_calibration_goes_on(checkpoint, samples, calibrated, tmp_path, monkeypatch, stage):
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
            export(checkpoint, target, precision=INT4, calibration=samples, check=False, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    monkeypatch.setattr(Rounding, "quantize", lambda *arguments: seen.append(2) or quantize(*arguments))
    resumed = export(checkpoint, target, precision=INT4, calibration=samples, check=False)
    assert seen.count(2) == (0 if stage in STAGES else 10)
    assert resumed.manifest.files == calibrated.manifest.files
    assert resumed.manifest.sensitivity == calibrated.manifest.sensitivity
    assert not folder.exists()


def test_a_finished_bundle_is_not_written_to(checkpoint, samples, calibrated, tmp_path, monkeypatch):
    """A run that was killed before it could remove its folder shares a file with the bundle that it made."""
    with monkeypatch.context() as patch:
        patch.setattr(calibrate.Calibration, "remove", lambda self: None)
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples, check=False)
    finished, left = tmp_path / "bundle" / "decoder.data", tmp_path / "bundle.calibration" / "decoder.data"
    assert finished.samefile(left)
    (tmp_path / "bundle").rename(tmp_path / "first")
    before = (tmp_path / "first" / "decoder.data").stat()
    monkeypatch.setattr(Rounding, "quantize", lambda *arguments: pytest.fail("calibrated again"))
    again = export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples, check=False)
    after = (tmp_path / "first" / "decoder.data").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert after.st_ino != finished.stat().st_ino
    assert again.manifest.files == calibrated.manifest.files
    again.check_files()


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_folder_that_lost_its_integers_starts_anew(checkpoint, samples, calibrated, begun, harm):
    path = begun / "decoder.data"
    if harm == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    again = export(checkpoint, begun.with_name("bundle"), precision=INT4, calibration=samples, check=False)
    assert again.manifest.files == calibrated.manifest.files


def test_results_of_other_settings_are_kept(checkpoint, samples, calibrated, begun):
    """They are refused with what differs, given up when asked, and until then can be finished."""
    target, wider = begun.with_name("bundle"), ExportPrecision.choose("int8", vision="fp32", block=32)
    options = {"precision": wider, "calibration": samples, "check": False}
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
    resumed = export(checkpoint, target, precision=INT4, calibration=samples, check=False, force=True)
    assert resumed.manifest.files == calibrated.manifest.files


def test_results_of_other_settings_are_given_up_when_asked(checkpoint, samples, begun):
    wider = ExportPrecision.choose("int8", vision="fp32", block=32)
    found = export(
        checkpoint, begun.with_name("bundle"), precision=wider, calibration=samples, restart_calibration=True
    )
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
