"""`qwenvl verify --golden`: a bundle against recorded tensors, here those of the published code and PyTorch's."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from qwenvl_edge.cli import main
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.verification.golden import read_golden
from qwenvl_edge_export.verification.verify import verify_golden
from support.dialects import RUNNABLE
from support.paths import ROOT
from support.reference import load_model

DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def recorded(tiny_checkpoint, tmp_path_factory):
    """The published code's figures in their own layout, but features by PyTorch: the tests' copy has every fourth."""
    folder = tmp_path_factory.mktemp("golden")
    vision, text = (dict(np.load(tiny_checkpoint / f"golden_{name}.npz")) for name in ("vision", "text"))
    meta = json.loads((tiny_checkpoint / "golden_meta.json").read_text())
    model = load_model(Checkpoint.open(tiny_checkpoint))
    with torch.no_grad():
        features = model.encode_images(torch.from_numpy(vision["pixel_values"]))
        np.testing.assert_allclose(features[:, ::4], vision["features_every_4th"], rtol=0, atol=3e-5)
    np.savez(
        folder / "golden_vision.npz",
        **{"vis.files.pixel_values": vision["pixel_values"], "vis.files.features": features},
    )
    np.savez(folder / "golden_text.npz", **text)
    (folder / "golden_meta.json").write_text(json.dumps(meta))
    shutil.copytree(DATA / "images", folder / "images")
    return folder


def altered(recorded, target, file, name, change):
    """A copy of the folder with one array changed."""
    shutil.copytree(recorded, target)
    arrays = dict(np.load(target / file))
    arrays[name] = change(arrays[name].copy())
    np.savez(target / file, **arrays)
    return target


def plus(place, amount):
    def change(array):
        array[place] += amount
        return array

    return change


def test_a_bundle_agrees_with_the_published_code(tiny_bundle, recorded, capsys):
    report = verify_golden(tiny_bundle, recorded)
    assert report.passed, report.table()
    stages = {
        stage: {(row.graph, row.case) for row in report.rows if row.stage == stage}
        for stage in dict.fromkeys(row.stage for row in report.rows)
    }
    assert stages["pixels"] == {("preprocessing", name) for name in ("a", "b", "c", "gray")}
    assert [note.split(":")[0] for note in report.skipped] == ["the pixels of picture rgba"]
    assert {graph for graph, _ in stages["image features"]} == {"vision.onnx", "vision.ort.onnx"}
    assert stages["logits, greedy steps"] == {
        (name, case) for name in RUNNABLE for case in ("text", "img1", "img3_history", "raw")
    }
    assert all(row.agreed == row.tokens == 16 for row in report.rows if row.tokens is not None)
    assert main(["verify", str(tiny_bundle.path), "--golden", str(recorded)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "passed"


@pytest.mark.parametrize(
    ("file", "name", "change", "stage"),
    [
        ("golden_vision.npz", "vis.files.features", plus((2, 7, 3), 1e-3), "image features"),
        ("golden_text.npz", "text.logits_last4", plus((1, 5), 1e-3), "logits, greedy steps"),
        ("golden_text.npz", "text.step_logits", plus((9, 5), 1e-3), "logits, greedy steps"),
    ],
)
def test_one_other_value_is_found_in_its_stage(tiny_bundle, recorded, tmp_path, file, name, change, stage):
    report = verify_golden(tiny_bundle, altered(recorded, tmp_path / "golden", file, name, change))
    assert {row.stage for row in report.rows if not row.passed} == {stage}
    assert "differ by 1." in report.failures


def test_other_pixels_fail_with_exit_code_2(tiny_bundle, recorded, tmp_path, capsys):
    shutil.copytree(recorded, tmp_path / "golden")
    shutil.copyfile(recorded / "images" / "a.png", tmp_path / "golden" / "images" / "b.png")
    assert main(["verify", str(tiny_bundle.path), "--golden", str(tmp_path / "golden")]) == 2
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAILED")]
    assert len(failed) == 1 and failed[0].startswith("pixels")


def test_another_greedy_answer_is_a_failure(tiny_bundle, recorded, tmp_path):
    folder = altered(recorded, tmp_path / "golden", "golden_text.npz", "text.greedy", plus(15, 1))
    report = verify_golden(tiny_bundle, folder)
    assert "greedy answers part after 15 tokens" in report.failures


def test_the_later_families_layout_is_read():
    golden = read_golden(DATA / "families" / "qwen3_vl")
    assert [picture.name for picture in golden.pictures] == list("abcdef")
    assert all(picture.file.is_file() for picture in golden.pictures)
    a = golden.pictures[0]
    assert (a.pixels.shape, a.features.shape, a.deepstack.shape) == ((140, 1536), (35, 80), (3, 35, 80))
    assert {prompt.name: prompt.pictures for prompt in golden.prompts} == {"one": ("a",), "two": ("b", "c"), "text": ()}
    assert all(len(prompt.steps) == len(prompt.greedy) == 12 for prompt in golden.prompts)
    assert [note.split(":")[0] for note in golden.skipped] == [
        f"the prompt {name}" for name in ("video2", "video5", "mixed")
    ]


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda folder: (folder / "golden_text.npz").unlink(), "cannot read the recorded tensors in .*golden_text.npz"),
        (lambda folder: (folder / "golden_vision.npz").write_bytes(b"x"), "cannot read the recorded tensors"),
        (lambda folder: (folder / "golden_meta.json").write_text("[]"), "recorded tensors in .* are incomplete"),
        (
            lambda folder: np.savez(folder / "golden_text.npz", none=np.zeros(1)),
            "incomplete: 'text.input_ids' is missing",
        ),
    ],
)
def test_damaged_folders(tiny_bundle, recorded, tmp_path, break_it, match):
    shutil.copytree(recorded, tmp_path / "golden")
    break_it(tmp_path / "golden")
    with pytest.raises(QwenVLError, match=match):
        verify_golden(tiny_bundle, tmp_path / "golden")


def test_tensors_of_another_model(random_bundle, recorded):
    with pytest.raises(QwenVLError, match=r"recorded pixels of picture a have shape .* recorded for this model\?"):
        verify_golden(random_bundle, recorded)
