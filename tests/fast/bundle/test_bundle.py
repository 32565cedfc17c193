from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.bundle.manifest import FamilyInfo, Graphs
from qwenvl_edge.errors import BundleError
from support.manifests import make_manifest, make_model

MODEL = make_model(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=2, vocab_size=6, max_position_embeddings=32)
CONTENT = {
    "vision.onnx": b"vision",
    "decoder.onnx": b"decoder",
    "embedding.bin": np.arange(48, dtype="<f4").tobytes(),
    "qwen.tiktoken": b"IQ== 0\n",
}
MANIFEST = make_manifest(
    MODEL,
    FamilyInfo("qwen9_vl", {"anything": [1, {"that": "the family reads"}]}),
    {name: FileInfo(len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()},
    graphs=Graphs("vision.onnx", {"standard": "decoder.onnx"}),
    parity={"passed": True},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    for name, data in CONTENT.items():
        (path / name).write_bytes(data)
    MANIFEST.write(path)
    return path


def edit(folder: Path, keys: str, value: Any) -> None:
    """Set (or with Ellipsis, remove) the value at "a/b/c" in bundle.json."""
    path = folder / "bundle.json"
    raw = json.loads(path.read_text())
    *parents, last = keys.split("/")
    target = raw
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    path.write_text(json.dumps(raw))


def test_what_is_written_is_read(folder):
    bundle = Bundle.open(folder)
    assert bundle.manifest == MANIFEST
    assert bundle.file("vision.onnx") == folder / "vision.onnx"
    assert bundle.embedding.shape == (6, 8)
    rows = bundle.embedding[[[5, 0]]]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[0], np.arange(48).reshape(6, 8)[[5, 0]])


def test_a_manifest_from_before_int8_caches(folder):
    edit(folder, "precision/kv_cache", ...)
    assert Bundle.open(folder).manifest == MANIFEST
    assert MANIFEST.precision.kv_cache == "float"


def test_manifest_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MANIFEST.tokenizer = "other"  # type: ignore[misc]


def test_unlisted_file(folder):
    with pytest.raises(BundleError, match=r'lists no file "notes\.txt"'):
        Bundle.open(folder).file("notes.txt")


def test_missing_folder(tmp_path):
    with pytest.raises(BundleError, match="there is no bundle at"):
        Bundle.open(tmp_path / "nowhere")


def test_a_file_is_not_a_bundle(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("x")
    with pytest.raises(BundleError, match="is a file, not a bundle"):
        Bundle.open(path)


def test_a_folder_without_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="so it is not a bundle"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not JSON"),
        ('{"format": 2,', "not JSON"),
        ("[]", "is not a JSON object but list .*; this is not a Qwen-VL Edge bundle"),
        ('{"model": {}}', "not a Qwen-VL Edge bundle"),
        ('{"format": 1}', "has format 1, .* format 2; make it again with `qwenvl export CHECKPOINT BUNDLE --force`"),
        ('{"format": 3}', "has format 3, .* or use the version that wrote it"),
        ('{"format": "2"}', "has format '2'"),
        ('{"format": 2}', "missing key family"),
    ],
)
def test_bad_manifest_text(folder, text, match):
    (folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=match):
        Bundle.open(folder)


def test_manifest_that_is_not_text(folder):
    (folder / "bundle.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot read"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        ("extra", 1, "unknown key extra"),
        ("model/extra", 1, "model: unknown key extra"),
        ("tokenizer", ..., "missing key tokenizer"),
        ("model/head_dim", ..., "model: missing key head_dim"),
        ("model/head_dim", "64", "model: head_dim: expected int, found str '64'"),
        ("model/head_dim", True, "expected int, found bool True"),
        ("model/head_dim", 2.0, "expected int, found float 2.0"),
        ("model/head_dim", None, "expected int, found null"),
        ("generation/do_sample", 1, "expected bool, found int 1"),
        ("generation/top_p", float("nan"), "expected float, found float nan"),
        ("family", "qwen_vl", "family: expected an object, found str 'qwen_vl'"),
        ("family/config", [], "family: config: expected an object"),
        ("family/version", 1, "family: unknown key version"),
        ("model", [], "model: expected an object, found list"),
        ("files/vision.onnx/size", "6", 'files\\["vision.onnx"\\]: size: expected int'),
        ("graphs/decoder", [], "decoder: expected an object"),
        ("embedding/shape", [6], "expected a list of 2 values"),
        ("embedding/shape", [6, "8"], "expected int, found str"),
        ("model/num_layers", 0, "model.num_layers is 0; it must be positive"),
        ("model/num_layers", 1 << 20, "model.num_layers is 1,048,576, which no model has"),
        ("model/head_dim", 1 << 24, "model.head_dim is 16,777,216, which no model has"),
        ("model/num_kv_heads", 3, "not a multiple of model.num_kv_heads"),
        ("embedding/dtype", "int8", 'embedding.dtype is "int8"'),
        ("embedding/shape", [8, 6], "not \\[model.vocab_size"),
        ("files/embedding.bin/size", 10, "which is not its shape"),
        ("graphs/vision", "other.onnx", '"other.onnx" is used but not listed'),
        ("tokenizer", "other.tiktoken", '"other.tiktoken" is used but not listed'),
    ],
)
def test_bad_manifest_values(folder, keys, value, match):
    edit(folder, keys, value)
    with pytest.raises(BundleError, match=match):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", "C:\\secret", "a\\b", "C:/secret", ""]
)
def test_names_that_leave_the_folder(folder, name):
    raw = json.loads((folder / "bundle.json").read_text())
    raw["files"][name] = {"size": 1, "sha256": "0"}
    (folder / "bundle.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        Bundle.open(folder)


@pytest.fixture
def linked(folder, tmp_path):
    """The bundle as the Hub's cache lays it: links to files that are called by their digests."""
    snapshot = tmp_path / "snapshots" / "0123"
    for place in (snapshot, tmp_path / "blobs"):
        place.mkdir(parents=True)
    for path in folder.iterdir():
        blob = tmp_path / "blobs" / sha256(path)
        path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_links_to_files_elsewhere(linked):
    bundle = Bundle.open(linked)
    assert bundle.manifest == MANIFEST
    bundle.check_files()
    np.testing.assert_array_equal(bundle.embedding[[1]], [np.arange(8, 16)])


def test_files_behind_links_are_checked(linked):
    path = (linked / "embedding.bin").resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r'embedding\.bin" was altered'):
        Bundle.open(linked)


def test_a_link_to_nothing(linked):
    """As in a cache that was fetched in part."""
    (linked / "vision.onnx").resolve().unlink()
    with pytest.raises(BundleError, match=r'vision.onnx" is a link to "\.\./\.\./blobs/.*", which is not there'):
        Bundle.open(linked)


@pytest.mark.parametrize("target", ["/dev/zero", "/dev", "pipe"])
def test_links_to_what_is_no_file(folder, tmp_path, target):
    if target == "pipe":
        os.mkfifo(target := tmp_path / "pipe")
    (folder / "vision.onnx").unlink()
    (folder / "vision.onnx").symlink_to(target)
    with pytest.raises(BundleError, match=r'has something else than a file as "vision\.onnx"'):
        Bundle.open(folder)


def test_linked_folders_that_leave_the_folder(folder, tmp_path):
    """A name with folders in it must not lead outside, whatever lies there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "vision.onnx").rename(outside / "vision.onnx")
    (folder / "graphs").symlink_to(outside)
    raw = json.loads((folder / "bundle.json").read_text())
    raw["files"]["graphs/vision.onnx"] = raw["files"].pop("vision.onnx")
    raw["graphs"]["vision"] = "graphs/vision.onnx"
    (folder / "bundle.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="lies in a linked folder that leaves it"):
        Bundle.open(folder)
    (folder / "graphs").unlink()
    (folder / "real").mkdir()
    (outside / "vision.onnx").rename(folder / "real" / "vision.onnx")
    (folder / "graphs").symlink_to("real")
    Bundle.open(folder)


def test_a_bundle_behind_a_link_opens(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert Bundle.open(tmp_path / "link").manifest == MANIFEST


@pytest.mark.parametrize("name", CONTENT)
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f'lacks "{name}"'):
        Bundle.open(folder)


@pytest.mark.parametrize("name", CONTENT)
def test_truncated_file(folder, name):
    (folder / name).write_bytes(CONTENT[name][:-1])
    with pytest.raises(
        BundleError, match=f'{name}" has {len(CONTENT[name]) - 1} bytes instead of {len(CONTENT[name])}'
    ):
        Bundle.open(folder)


@pytest.mark.parametrize("name", CONTENT)
def test_altered_file(folder, name):
    data = bytearray(CONTENT[name])
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f'{name}" was altered'):
        Bundle.open(folder)


def test_big_files_are_hashed_by_check_files_only(folder, monkeypatch):
    monkeypatch.setattr("qwenvl_edge.bundle.bundle.HASHED_AT_OPEN_BYTES", 10)
    data = bytearray(CONTENT["embedding.bin"])
    data[0] ^= 1
    (folder / "embedding.bin").write_bytes(data)
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="was altered"):
        bundle.check_files()


def test_sha256_of_an_unreadable_file(tmp_path):
    with pytest.raises(BundleError, match="cannot read"):
        sha256(tmp_path / "nothing")
