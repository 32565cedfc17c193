"""plans/<target>/: what is written is read back, and every way of being wrong has a sentence of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import (
    DECODER_PLAN,
    FORMAT,
    PLAN_NAME,
    VISION_PLAN,
    Builder,
    Machine,
    Plan,
    PlanLimits,
    PlanManifest,
    Profile,
    bundle_digest,
    choose_plan,
    plan_targets,
    platform_name,
)
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.errors import BackendError, BundleError

ENGINES = {VISION_PLAN: b"an engine", DECODER_PLAN: b"another engine"}
HERE = Builder("tensorrt", "10.14.1.48", platform_name())


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return Bundle(tmp_path, tiny_bundle.manifest)


def manifest(bundle, target="sm_87", **changes):
    record = PlanManifest(
        format=FORMAT,
        target=target,
        builder=HERE,
        compute_capabilities=(87,),
        dialect="standard",
        plugin="",
        precision={"vision": "fp16", "decoder": "int4"},
        limits=PlanLimits(2048, 2, 3, 256),
        profiles={
            "decode": Profile(0, (1, 1, 2), (1, 1, 1)),
            "prefill": Profile(1, (1, 256, 256), (1, 1, 16)),
            "verify": Profile(2, (1, 8, 16), (1, 8, 16)),
        },
        bundle_digest=bundle_digest(bundle.manifest),
        files={name: FileInfo(len(data), hashlib.sha256(data).hexdigest()) for name, data in ENGINES.items()},
    )
    return dataclasses.replace(record, **changes)


def write(bundle, target="sm_87", **changes):
    folder = bundle.path / "plans" / target
    folder.mkdir(parents=True)
    for name, data in ENGINES.items():
        (folder / name).write_bytes(data)
    manifest(bundle, target, **changes).write(folder)
    return folder


def test_what_is_written_is_read(bundle):
    folder = write(bundle)
    plan = Plan.open(bundle, "sm_87")
    assert plan.manifest == manifest(bundle)
    assert (plan.vision, plan.decoder) == (folder / VISION_PLAN, folder / DECODER_PLAN)
    plan.check_machine(Machine(HERE, 87))


def test_a_missing_plan_names_the_command(bundle):
    with pytest.raises(BundleError, match=r"there is no plan at .*plans/orin.*qwenvl build .* --target orin"):
        Plan.open(bundle, "orin")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 2, this version reads format 1"),
        ("surprise", 1, "unknown key surprise"),
        ("limits", {"max_context": 1}, "missing key max_batch"),
        ("limits", {"max_context": 0, "max_batch": 1, "max_images": 1, "chunk": 1}, "limits.max_context is 0"),
        ("compute_capabilities", ["87"], "compute_capabilities: expected int, found str"),
        ("compute_capabilities", 87, "compute_capabilities: expected a list"),
        ("builder", {"api": "cuda", "version": "1", "platform": "x"}, 'builder.api is "cuda"'),
        ("files", {}, "must list vision.plan and decoder.plan"),
        ("profiles", {}, "must be decode, prefill, verify"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(bundle, key, value, message):
    path = write(bundle) / PLAN_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(BundleError, match=rf"the plan .* cannot be used: .*{message}.*qwenvl build .* --force"):
        Plan.open(bundle, "sm_87")


def test_profiles_must_rise(bundle):
    path = write(bundle) / PLAN_NAME
    raw = json.loads(path.read_text())
    raw["profiles"]["verify"]["tokens"] = [4, 2, 8]
    path.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="tokens of the profile verify must be three rising numbers"):
        Plan.open(bundle, "sm_87")


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_what_is_no_manifest(bundle, text):
    (write(bundle) / PLAN_NAME).write_text(text)
    with pytest.raises(BundleError, match="cannot be used"):
        Plan.open(bundle, "sm_87")


def test_a_missing_manifest(bundle):
    (write(bundle) / PLAN_NAME).unlink()
    with pytest.raises(BundleError, match=r"cannot read .*plan\.json.*build it again"):
        Plan.open(bundle, "sm_87")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"anothEr engine", "was altered: its SHA-256"), (b"anoth", "5 bytes instead of 14"), (None, "lacks")],
)
def test_a_damaged_engine(bundle, data, message):
    path = write(bundle) / DECODER_PLAN
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{message}.*qwenvl build .* --target sm_87 --force"):
        Plan.open(bundle, "sm_87")


def test_a_plan_of_links_opens_and_a_broken_one_is_said(bundle, tmp_path):
    """The Hub's cache links to blobs elsewhere."""
    path = write(bundle) / VISION_PLAN
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    Plan.open(bundle, "sm_87").check_files()
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(BundleError, match=VISION_PLAN):
        Plan.open(bundle, "sm_87")


def test_a_plan_of_another_bundle(bundle):
    write(bundle, bundle_digest="0" * 64)
    with pytest.raises(BundleError, match="was built from another bundle; build it again"):
        Plan.open(bundle, "sm_87")


def test_the_digest_follows_every_file(bundle):
    files = dict(bundle.manifest.files)
    name = next(iter(files))
    files[name] = FileInfo(files[name].size, "0" * 64)
    changed = dataclasses.replace(bundle.manifest, files=files)
    assert bundle_digest(changed) != bundle_digest(bundle.manifest)


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (
            Machine(dataclasses.replace(HERE, version="10.3.0"), 87),
            "was built by tensorrt 10.14.1.48, but tensorrt 10.3.0",
        ),
        (Machine(dataclasses.replace(HERE, api="tensorrt_rtx"), 87), "but tensorrt_rtx 10.14.1.48 is installed"),
        (Machine(dataclasses.replace(HERE, platform="linux-riscv64"), 87), "but this machine is linux-riscv64"),
        (Machine(HERE, 86), "was built for sm_87, but this GPU is sm_86"),
    ],
)
def test_another_machine(bundle, machine, message):
    write(bundle)
    with pytest.raises(BackendError, match=rf"{message}.*qwenvl build .* --target local"):
        Plan.open(bundle, "sm_87").check_machine(machine)
    with pytest.raises(BackendError, match=rf"no plan of the bundle .* runs here \(sm_87 .*{message}"):
        choose_plan(bundle, machine)


def test_the_plan_that_fits_is_chosen(bundle):
    for target, capability in (("a", 86), ("b", 87), ("local", 89), ("zz", 89)):
        write(bundle, target, compute_capabilities=(capability,))
    (bundle.path / "plans" / "c.partial-1").mkdir()
    assert plan_targets(bundle.path) == ["a", "b", "local", "zz"]
    assert choose_plan(bundle, Machine(HERE, 87)).manifest.target == "b"
    assert choose_plan(bundle, Machine(HERE, 89)).manifest.target == "local"


def test_a_damaged_plan_is_told_of_where_none_fits(bundle):
    write(bundle, "a", compute_capabilities=(86,))
    (write(bundle, "b") / VISION_PLAN).unlink()
    with pytest.raises(BundleError, match=r"lacks .vision\.plan"):
        choose_plan(bundle, Machine(HERE, 87))
    assert choose_plan(bundle, Machine(HERE, 86)).manifest.target == "a"


def test_no_plan_at_all(bundle):
    assert plan_targets(bundle.path) == []
    with pytest.raises(BackendError, match=r"there is none.*qwenvl build"):
        choose_plan(bundle, Machine(HERE, 87))
