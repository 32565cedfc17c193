from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.errors import BackendError, BundleError, CheckpointError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.cases import builtin_box_case, builtin_cases, case_builder
from qwenvl_edge_export.verification.comparison import Comparison
from qwenvl_edge_export.verification.graph_runner import PIECE_BYTES
from qwenvl_edge_export.verification.limits import agreement, overlap
from qwenvl_edge_export.verification.sides import GREEDY_TOKENS, GraphSide
from qwenvl_edge_export.verification.stages import silent
from qwenvl_edge_export.verification.verify import compare, verify
from support.dialects import RUNNABLE
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint
from support.reference import load_model, pixels_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = write_checkpoint(folder / "checkpoint")
    return source, export(source, folder / "bundle", precision=ExportPrecision.choose("fp32"))


def copy(bundle: Bundle, target) -> Bundle:
    return Bundle(shutil.copytree(bundle.path, target), bundle.manifest)


def changed(folder, name, index, factor):
    """A checkpoint like the exported one, but for one value."""
    tensors = random_tensors(config_dict())
    tensors[name][index] *= factor
    return write_checkpoint(folder / "changed", tensors=tensors)


def test_a_bundle_agrees_with_its_checkpoint(tiny_bundle, tiny_checkpoint):
    report = verify(tiny_bundle.path, tiny_checkpoint)
    assert report.passed
    assert report.failures == ""
    stages = {(row.graph, row.case) for row in report.rows}
    prompts = {"text", "pictures, history", "box"}
    assert stages == {(dialect, case) for dialect in RUNNABLE for case in prompts} | {
        ("vision", "pictures, history"),
        ("vision", "box"),
    }
    for row in report.rows:
        assert 0 < row.max_abs < row.limit
        assert row.top1 == (None if row.graph == "vision" else 1.0)


def test_the_report_is_json_and_a_table(exported):
    source, bundle = exported
    report = verify(bundle, source)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    lines = report.table().splitlines()
    rows, legend = lines[1 : len(report.rows) + 1], lines[len(report.rows) + 1 : -1]
    titles = [line.strip().split("  ")[0] for line in legend if line]
    assert titles == ["max |diff|", "cosine", "KL", "top-1", "greedy"]
    assert lines[0].split()[:8] == ["stage", "graph", "prompt", "max", "|diff|", "limit", "cosine", "KL"]
    assert lines[0].split()[8:] == ["top-1", "greedy", "box", "IoU"]
    assert all(line.endswith("ok") for line in rows)
    assert lines[-1] == report.status == "passed"


@pytest.mark.parametrize(
    ("name", "index", "graphs"),
    [
        ("transformer.visual.transformer.resblocks.1.mlp.c_fc.bias", 3, {"vision", *RUNNABLE}),
        ("transformer.visual.attn_pool.query", (1, 5), {"vision", *RUNNABLE}),
        ("transformer.h.1.mlp.w2.weight", (5, 7), RUNNABLE),
        ("transformer.h.0.attn.c_attn.bias", 200, RUNNABLE),
        ("lm_head.weight", (100, 1), RUNNABLE),
    ],
)
def test_one_wrong_value_of_a_checkpoint_is_found(exported, tmp_path, name, index, graphs):
    report = verify(exported[1], changed(tmp_path, name, index, 3.0))
    assert not report.passed
    assert {row.graph for row in report.rows if not row.passed} == graphs
    assert "differ by" in report.failures
    assert "FAILED" in report.table() and report.failures.split("; ")[0] in report.table().splitlines()


def test_top1_counts_flipped_tokens(exported, tmp_path):
    tensors = random_tensors(config_dict())
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0)
    report = verify(exported[1], write_checkpoint(tmp_path / "flipped", tensors=tensors))
    shares = [row.top1 for row in report.rows if row.stage == "logits"]
    assert shares and max(shares) < 0.5


def test_another_models_checkpoint_is_refused(exported, tmp_path):
    other = write_checkpoint(tmp_path / "other", raw=config_dict(num_hidden_layers=3, seq_length=32))
    with pytest.raises(CheckpointError, match=r"was not made from .* num_layers 3 instead of 2, seq_length 32 instead"):
        verify(exported[1], other)


def test_all_files_are_hashed(exported, tmp_path, monkeypatch):
    source, bundle = exported
    monkeypatch.setattr("qwenvl_edge.bundle.bundle.HASHED_AT_OPEN_BYTES", 0)
    altered = copy(bundle, tmp_path / "bundle")
    with (altered.path / "decoder.data").open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(BundleError, match=r"decoder\.data.* was altered"):
        verify(altered.path, source)


def test_nan_in_a_graph_is_an_error(exported, tmp_path):
    source, bundle = exported
    broken = copy(bundle, tmp_path / "bundle")
    data = np.memmap(broken.path / "vision.data", dtype="<f4", mode="r+")
    data[:] = np.nan
    data.flush()
    with pytest.raises(BackendError, match="the image features hold NaN"):
        compare(broken, Checkpoint.open(source))


def test_dialects_that_an_old_onnx_runtime_cannot_run_are_left_out_and_named(exported, monkeypatch):
    source, bundle = exported
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    report = verify(bundle, source)
    assert report.passed
    assert report.skipped == ('"standard", which needs ONNX Runtime 1.25 or newer, this is 1.23.2',)
    assert {row.graph for row in report.rows} == {"vision", "onnxruntime"}
    assert 'not compared: "standard"' in report.table()
    assert report.to_dict()["skipped"] == list(report.skipped)


def test_the_builtin_prompts_cover_the_formats(tiny_bundle):
    text, two = builtin_cases(case_builder(tiny_bundle))
    assert [len(case.prompt.pictures) for case in (text, two)] == [0, 2]
    assert two.prompt.turns == 1
    start = tiny_bundle.manifest.family.config["image_start_id"]
    for case in (text, two):
        assert len(case.pictures) == len(case.prompt.pictures)
        assert all(picture.arrays[PIXEL_VALUES].shape == (1, 3, 56, 56) for picture in case.pictures)
        assert np.flatnonzero(case.prompt.ids == start).tolist() == [span.start - 1 for span in case.prompt.spans]
        assert len(case.answer) > 10


def test_prompts_above_seq_length_are_part_of_it(exported):
    """The random checkpoints have seq_length 16: dynamic NTK and log-n act on every built-in prompt."""
    lengths = [len(case.prompt.ids) for case in builtin_cases(case_builder(exported[1]))]
    assert len(lengths) == 2 and min(lengths) > 16


def test_boxes_are_read_from_answers(tiny_bundle):
    builder = case_builder(tiny_bundle)
    case = builtin_box_case(builder)
    assert len(case.pictures) == 1 and not len(case.answer)

    def box(answer):
        return builder.box(builder.case("", (), (), answer).answer.tolist())

    assert box("(12,30),(480,610)</box> and more") == (12, 30, 480, 610)
    assert box("(12,30),(480,610)</box><box>(1,2),(3,4)</box>") == (12, 30, 480, 610)
    assert box("(12,30),(480") is None
    assert box("nowhere</box>") is None
    assert builder.box([tiny_bundle.manifest.model.vocab_size - 1]) is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((10, 10, 0, 0), (10, 10, 0, 0), 1.0),
        ((0, 0, 10, 10), None, 0.0),
        (None, None, None),
    ],
)
def test_overlap(a, b, expected):
    assert overlap(a, b) == overlap(b, a) == (expected if expected is None else pytest.approx(expected))


def test_the_drafted_reference_is_pytorchs_own_answer(exported, tmp_path):
    """Drafted by a bundle that answers otherwise, and corrected until nothing is left to correct."""
    tensors = random_tensors(config_dict())
    noise = torch.randn(tensors["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0))
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 0.02 * noise
    other = Checkpoint.open(write_checkpoint(tmp_path / "other", tensors=tensors))
    side = GraphSide(exported[1], "onnxruntime", budget_bytes=PIECE_BYTES)
    comparison = Comparison(exported[1], other, [side], silent)
    case = builtin_box_case(case_builder(exported[1]))
    wanted, found = comparison._wanted_features(), comparison._found_features()[side.vision]
    drafted = comparison._text(case, found)
    draft = side.greedy(drafted, (), comparison._answerable)
    model = load_model(other)
    pixels = torch.from_numpy(pixels_of(case))
    embeds = model.embed(torch.from_numpy(case.prompt.ids)[None], model.encode_images(pixels))
    expected = model.generate(embeds, GREEDY_TOKENS)
    assert draft != expected and len(draft) == GREEDY_TOKENS
    assert comparison._corrected(comparison._text(case, wanted), side, drafted, draft) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], (3, 3)),
        ([1, 9, 3], [1, 2, 3], (1, 3)),
        ([1, 2, 9], [1, 9, 3], (1, 3)),
        ([1, 8, 3], [1, 9, 3], (1, 3)),
        ([1, 9, 3], [1, 9, 3], None),
    ],
)
def test_where_two_greedy_answers_part(ours, theirs, expected):
    """Both are given 1, 2, 3: where they choose otherwise and alike, what follows is not known."""
    assert agreement([1, 2, 3], np.array(ours), np.array(theirs)) == expected


def test_bfloat16_runs_on_its_stored_values(exported, tmp_path):
    source, _ = exported
    bundle = export(source, tmp_path / "bf16", precision=ExportPrecision.choose("bf16", target="gpu"))
    report = verify(bundle, source)
    assert report.status == "passed"
    assert {row.graph for row in report.rows} == {"vision", "standard", "onnxruntime"}
    assert all(row.max_abs > 1e-4 for row in report.rows)
    assert "no bfloat16" in report.table()
    altered = verify(bundle, changed(tmp_path, "transformer.h.1.mlp.w2.weight", slice(None), 3.0))
    assert altered.status == "failed"


def test_nothing_that_can_be_run_here(exported, monkeypatch):
    source, bundle = exported
    monkeypatch.setattr("qwenvl_edge_export.verification.verify.can_run", lambda name: False)
    unseen = verify(bundle, source)
    assert (unseen.status, unseen.to_dict()["passed"]) == ("not run here", None)
    assert unseen.table().splitlines()[-1] == "not run here"


def test_the_stages_and_how_far_they_are(exported):
    source, bundle = exported
    told = []
    verify(bundle, source, progress=lambda *call: told.append(call))
    names = list(dict.fromkeys(what for _, _, what in told))
    decoders = [f"comparing: decoder {name}" for name in RUNNABLE]
    assert names[0] == "comparing: pictures in PyTorch" and "comparing: answers in PyTorch" in names
    assert set(decoders) < set(names)
    done = [done for done, _, _ in told]
    assert done == sorted(done) and done[0] == 0 and done[-1] == told[-1][1]


def test_an_unknown_backend(exported):
    with pytest.raises(BackendError, match='"onnxruntime" or "tensorrt", not with "tpu"'):
        verify(exported[1], exported[0], backend="tpu")
