"""What a calibration takes of the disk, and a disk that is too small or fills meanwhile."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BundleError
from qwenvl_edge_export import bundle_writer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.graphs import data_file as weights
from qwenvl_edge_export.graphs.weight_layout import ALIGNMENT_BYTES
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization import activations as spool
from qwenvl_edge_export.quantization import calibration as calibrate
from qwenvl_edge_export.quantization import results as kept
from qwenvl_edge_export.quantization.samples import read_samples
from support.calibration import INT4, builder_of

LAYER_BYTES = (128 * 384 + 128 * 128 + 3 * 128 * 96) * (4 + 1) // 8  # integers, and 32 bits of scale every 32


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


def test_no_weight_lies_on_the_disk_twice(checkpoint, samples, tmp_path):
    """Whenever a piece of the bundle has been written, it and what calibration keeps take no more than the result."""
    seen = []

    def progress(done, total, what):
        if what.startswith(("writing", "hashing")):
            seen.append(sum({path.stat().st_ino: allocated(path) for path in tmp_path.glob("bundle*/*")}.values()))

    export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples, check=False, progress=progress)
    cases = read_samples(samples, builder_of(checkpoint))
    activations = 4 * 128 * sum(len(case.prompt.ids) + len(case.answer) for case in cases)
    result = sum(map(allocated, (tmp_path / "bundle").iterdir()))
    assert max(seen) <= result + activations + 4 * 4096  # the JSON files beside them


def test_a_file_system_without_second_names(checkpoint, samples, calibrated, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(kept.os, "link", refuse)
    found = export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples, check=False)
    assert found.manifest.files == calibrated.manifest.files
    Bundle.open(found.path).check_files()


def test_the_disk_need_not_hold_twice_what_is_kept(checkpoint, calibrated, tmp_path, monkeypatch):
    files = calibrated.manifest.files
    needed = sum(files[name].size for name in ("vision.data", "decoder.data", "embedding.bin")) - 2 * LAYER_BYTES
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    options = {"precision": INT4, "calibration": tmp_path / "own.jsonl", "check": False}
    monkeypatch.setattr(bundle_writer.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(BundleError, match=r"the bundle takes .* MB, but the disk of"):
        export(checkpoint, tmp_path / "bundle", **options)
    monkeypatch.setattr(bundle_writer.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    export(checkpoint, tmp_path / "bundle", **options)


def test_too_little_disk_space_is_said_before_calibrating(checkpoint, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        BundleError, match=r"calibration takes [\d.]+ MB beside the bundle, but the disk of .* [\d.]+ MB free"
    ):
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space_is_said_before_going_on(checkpoint, samples, calibrated, begun, monkeypatch):
    """Of a calibration that is half done the other half's results are counted, and one file of activations."""
    (begun / "activations-9.partial").write_bytes(b"half")
    needed = (begun / "activations-1.f32").stat().st_size + LAYER_BYTES
    with monkeypatch.context() as patch:
        patch.setattr(calibrate.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
        with pytest.raises(BundleError, match=r"calibration takes [\d.]+ MB beside the bundle, but the disk of"):
            export(checkpoint, begun.with_name("bundle"), precision=INT4, calibration=samples)
        assert sorted(path.name for path in begun.iterdir()) == [
            *("activations-1.f32", "decoder.data", "key.json", "layer-0.json"),
        ]
    resumed = export(checkpoint, begun.with_name("bundle"), precision=INT4, calibration=samples, check=False)
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
def test_a_disk_that_fills_while_calibrating(
    checkpoint, samples, calibrated, tmp_path, monkeypatch, where, name, calls, error
):
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
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.calibration"] * begun
    assert not list(tmp_path.rglob("*.partial"))
    resumed = export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=samples, check=False)
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
