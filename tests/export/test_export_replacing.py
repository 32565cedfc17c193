"""An export replaces a bundle whole or not at all, whatever fails, fills or is killed meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import (
    DECODER_PLAN,
    PROFILES,
    VISION_PLAN,
    Builder,
    Plan,
    PlanLimits,
    PlanManifest,
    Profile,
    bundle_digest,
)
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.errors import BundleError, CheckpointError
from qwenvl_edge_export import bundle_writer
from qwenvl_edge_export.export import export
from qwenvl_edge_export.files import atomic_folder as staging
from qwenvl_edge_export.graphs import data_file as weights
from qwenvl_edge_export.options import ExportPrecision
from support.random_checkpoint import config_dict, random_tensors


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_bundle_is_kept_without_force(small_checkpoint, target):
    before = export(small_checkpoint("a"), target, check=False).manifest
    with pytest.raises(BundleError, match="exists already"):
        export(small_checkpoint("b", seed=1), target, check=False)
    assert Bundle.open(target).manifest == before


def test_force_replaces_a_bundle(small_checkpoint, target):
    before = export(small_checkpoint("a"), target).manifest
    after = export(small_checkpoint("b", seed=1), target, force=True).manifest
    assert before.provenance.checkpoint_sha256 != after.provenance.checkpoint_sha256
    assert Bundle.open(target).manifest == after
    assert listing(target.parent) == ["bundle"]


def test_force_replaces_nothing_but_bundles(small_checkpoint, target):
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        export(small_checkpoint(), target, force=True)
    assert listing(target) == ["thesis.txt"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("piece", [1, 40])
@pytest.mark.parametrize(
    ("failure", "raised", "match"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), BundleError, "No space left on device; nothing was left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_failures_leave_the_old_bundle_or_none(
    small_checkpoint, target, monkeypatch, existing, piece, failure, raised, match
):
    source = small_checkpoint("new", seed=1)
    before = export(small_checkpoint("old"), target, check=False).manifest if existing else None
    write, count = weights.HashingWriter.write, 0

    def failing(self, data):
        nonlocal count
        count += 1
        if count == piece:
            raise failure
        write(self, data)

    monkeypatch.setattr(weights.HashingWriter, "write", failing)
    with pytest.raises(raised, match=match):
        export(source, target, force=existing, check=False)
    assert count == piece
    assert listing(target.parent) == (["bundle"] if existing else [])
    if existing:
        assert Bundle.open(target).manifest == before


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("exchange", [False, True])
def test_replacing_with_and_without_an_exchange(small_checkpoint, target, monkeypatch, exchange, link):
    """Where system or file system cannot let two folders change places, the old one is renamed first."""
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda *paths: False)
    export(small_checkpoint("a"), target, check=False)
    if link:
        target.rename(target.parent.with_name("elsewhere"))
        target.symlink_to(target.parent.with_name("elsewhere"))
    after = export(small_checkpoint("b", seed=1), target, force=True, check=False).manifest
    assert Bundle.open(target).manifest == after
    assert listing(target.parent) == ["bundle"] and not target.is_symlink()
    assert not link or target.parent.with_name("elsewhere").is_dir()


def test_interruption_in_the_swap_brings_the_old_bundle_back(small_checkpoint, target, monkeypatch):
    monkeypatch.setattr(staging, "_exchange", lambda *paths: False)
    before = export(small_checkpoint("a"), target, check=False).manifest
    rename = Path.rename

    def interrupted(self, to):
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(small_checkpoint("b", seed=1), target, force=True, check=False)
    assert listing(target.parent) == ["bundle"]
    assert Bundle.open(target).manifest == before


def test_too_little_disk_space_is_said_before_writing(small_checkpoint, target, monkeypatch):
    monkeypatch.setattr(bundle_writer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(BundleError, match=r"takes 0\.\d+ MB, but the disk of .* has 0\.001 MB free"):
        export(small_checkpoint(), target)
    assert listing(target.parent) == []


def test_what_dead_exports_left_is_removed(small_checkpoint, target):
    left = target.parent / "bundle.partial-12"
    left.mkdir()
    (left / "vision.data").write_text("half")
    others = [target.parent / name for name in ("other.partial-12", "bundle.partial-of-mine", "bundle.older")]
    for other in others:
        other.mkdir()
    export(small_checkpoint(), target, check=False)
    assert listing(target.parent) == sorted(["bundle", *(other.name for other in others)])


def test_a_swap_cut_by_death_is_undone(small_checkpoint, target):
    before = export(small_checkpoint(), target, check=False).manifest
    target.rename(target.with_name("bundle.old-0a1b"))
    with pytest.raises(BundleError, match=r'cut short; rename ".*bundle.old-0a1b", the old one, to "bundle"'):
        Bundle.open(target)
    with pytest.raises(BundleError, match="exists already"):
        export(small_checkpoint("b", seed=1), target, check=False)
    assert Bundle.open(target).manifest == before


def test_nan_in_a_checkpoint_names_the_tensor(small_checkpoint, target):
    tensors = random_tensors(config_dict())
    tensors["transformer.h.1.mlp.w2.weight"][3, 4] = float("nan")
    with pytest.raises(CheckpointError, match=r"transformer.h.1.mlp.w2.weight holds NaN or infinity"):
        export(small_checkpoint(tensors=tensors), target)
    assert listing(target.parent) == []


def test_graphs_that_differ_from_the_checkpoint_are_not_kept(small_checkpoint, target, monkeypatch):
    from qwenvl_edge_export.families.qwen_vl import vision

    monkeypatch.setattr(vision, "VISION_EPS", 1e-2)
    with pytest.raises(BundleError, match=r"do not compute .* image features \(vision, pictures, history\): differ by"):
        export(small_checkpoint(), target, precision=ExportPrecision.choose("fp32"))
    assert listing(target.parent) == []


def test_a_tokenizer_of_another_model_is_refused(small_checkpoint, target):
    source = small_checkpoint(raw=config_dict({"image_start_id": 471}))
    with pytest.raises(CheckpointError, match=r"256 ranks there, but image_start_id 471 and vocab_size 480"):
        export(source, target)
    assert listing(target.parent) == []


def test_a_damaged_tokenizer_is_refused(small_checkpoint, target):
    source = small_checkpoint()
    (source / "qwen.tiktoken").write_text("no vocabulary")
    with pytest.raises(CheckpointError, match="cannot be exported"):
        export(source, target)
    assert listing(target.parent) == []


def test_a_place_that_cannot_be_written(small_checkpoint, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"cannot write .*; nothing was left behind"):
        export(small_checkpoint(), tmp_path / "file" / "bundle")


def with_plan(bundle: Path, target: str, digest: str) -> Path:
    """A plan as far as an export looks at it: its manifest and files, which no TensorRT made."""
    folder = bundle / "plans" / target
    folder.mkdir(parents=True)
    files = {name: FileInfo(3, hashlib.sha256(b"abc").hexdigest()) for name in (VISION_PLAN, DECODER_PLAN)}
    for name in files:
        (folder / name).write_text("abc")
    shape = Profile(0, (1, 1, 1), (1, 1, 1))
    PlanManifest(
        format=1,
        target=target,
        builder=Builder("tensorrt", "10.13.0", "linux-x86_64"),
        compute_capabilities=(86,),
        dialect="standard",
        plugin="",
        precision={"vision": "fp32", "decoder": "fp32", "kv_cache": "float"},
        limits=PlanLimits(64, 1, 1, 16),
        profiles=dict.fromkeys(PROFILES, shape),
        bundle_digest=digest,
        files=files,
    ).write(folder)
    return folder


def test_plans_that_fit_the_new_bundle_stay(small_checkpoint, target):
    source = small_checkpoint("a")
    before = export(source, target, check=False)
    fitting = with_plan(target, "sm_86", bundle_digest(before.manifest))
    with_plan(target, "orin", "0" * 64)
    (with_plan(target, "thor", bundle_digest(before.manifest)) / "plan.json").write_text("no plan")
    notes: list[str] = []
    export(source, target, force=True, check=False, note=notes.append)
    assert listing(target / "plans") == ["sm_86"]
    assert listing(fitting) == ["decoder.plan", "plan.json", "vision.plan"]
    assert (fitting / "decoder.plan").read_text() == "abc" and Plan.open(Bundle.open(target), "sm_86").path == fitting
    (note,) = notes
    assert "plans of the old bundle (orin, thor) do not fit the new one" in note and f"`qwenvl build {target}`" in note
    notes.clear()
    export(small_checkpoint("b", seed=1), target, force=True, check=False, note=notes.append)
    assert "plans" not in listing(target) and "(sm_86)" in notes[0]


def test_plans_are_copied_where_there_are_no_links(small_checkpoint, target, monkeypatch):
    source = small_checkpoint("a")
    before = export(source, target, check=False)
    plan = with_plan(target, "sm_86", bundle_digest(before.manifest))
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    export(source, target, force=True, check=False)
    assert listing(plan) == ["decoder.plan", "plan.json", "vision.plan"]


def test_plans_stay_where_an_export_fails(small_checkpoint, target, monkeypatch):
    source = small_checkpoint("a")
    before = export(source, target, check=False)
    plan = with_plan(target, "sm_86", bundle_digest(before.manifest))
    monkeypatch.setattr(staging, "_swap", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "it is full")))
    with pytest.raises(BundleError, match="it is full; nothing was left behind"):
        export(source, target, force=True, check=False)
    assert listing(plan) == ["decoder.plan", "plan.json", "vision.plan"]
