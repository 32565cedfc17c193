"""What an export writes, and that it is the same again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qwenvl_edge.bundle.examples import examples_of
from qwenvl_edge.errors import BundleError, CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision, GraphPrecision
from support.dialects import RUNNABLE
from support.paths import DATA
from support.random_checkpoint import GENERATION, config_dict, random_tensors


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_holds_what_the_design_says(tiny_bundle):
    assert listing(tiny_bundle.path) == sorted([*tiny_bundle.manifest.files, "bundle.json"])
    assert set(tiny_bundle.manifest.files) == {
        "vision.onnx",
        "vision.ort.onnx",
        "vision.data",
        "decoder.onnx",
        "decoder.ort.onnx",
        "decoder.data",
        "embedding.bin",
        "qwen.tiktoken",
    }
    tiny_bundle.check_files()
    manifest = tiny_bundle.manifest
    assert manifest.family.name == "qwen_vl"
    assert manifest.family.config["image_tokens"] == 256
    assert manifest.generation.top_p == 0.3
    assert manifest.generation.temperature == 1.0
    assert manifest.parity["passed"] is True
    assert {row["graph"] for row in manifest.parity["stages"]} == {"vision", *RUNNABLE}
    assert set(manifest.provenance.versions) >= {"python", "torch", "onnxruntime"}
    assert manifest.provenance.versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("name", "opset"),
    [("vision.onnx", 23), ("vision.ort.onnx", 23), ("decoder.onnx", 24), ("decoder.ort.onnx", 23)],
)
def test_graphs_are_valid_and_keep_weights_outside(tiny_bundle, name, opset):
    path = tiny_bundle.file(name)
    onnx.checker.check_model(str(path))
    model = onnx.load(path, load_external_data=False)
    assert {each.domain: each.version for each in model.opset_import}[""] == opset
    inside = [each for each in model.graph.initializer if each.data_location != onnx.TensorProto.EXTERNAL]
    assert all(np.prod(each.dims) <= 8 for each in inside)
    assert path.stat().st_size < 50_000


def test_the_standard_decoder_uses_standard_operators_only(tiny_bundle):
    model = onnx.load(tiny_bundle.file("decoder.onnx"), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("TensorScatter"), kinds.count("Attention"), kinds.count("RotaryEmbedding")) == (4, 2, 4)


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.ort.onnx"])
def test_decoder_inputs_and_outputs_are_the_contract(tiny_bundle, name):
    graph = onnx.load(tiny_bundle.file(name), load_external_data=False).graph

    def shapes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    of_ort = {"last_indices": ["B"], "total_sequence_length": [1]}
    cache = {f"{i}.{part}": ["B", 4, "C", 64] for i in range(2) for part in ("key", "value")}
    assert shapes(graph.input) == {
        "inputs_embeds": ["B", "T", 256],
        "rope_cos": ["B", "T", 32],
        "rope_sin": ["B", "T", 32],
        "query_scale": ["B", "T"],
        "logits_indices": ["B", "K"],
        **({"write_indices": ["B"]} if name == "decoder.onnx" else of_ort),
    } | {f"past_key_values.{key}": shape for key, shape in cache.items()}
    assert shapes(graph.output) == {"logits": ["B", "K", 2304]} | {f"present.{k}": shape for k, shape in cache.items()}


def test_both_decoders_share_their_weights(tiny_bundle):
    places = []
    for name in ("decoder.onnx", "decoder.ort.onnx"):
        graph = onnx.load(tiny_bundle.file(name), load_external_data=False).graph
        places.append({t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data})
    assert places[0] == places[1]
    assert {place["location"] for place in places[0].values()} == {"decoder.data"}
    assert "transformer.wte.weight" not in places[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_become_float32(small_checkpoint, target, dtype):
    tensors = random_tensors(config_dict(), dtype)
    bundle = export(small_checkpoint(tensors=tensors, shards=3, pickled=True), target)
    np.testing.assert_array_equal(bundle.embedding[:], tensors["transformer.wte.weight"].float())
    assert bundle.manifest.parity["passed"]


def test_tensors_of_different_float_types_are_read_as_they_are(small_checkpoint, target):
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    tensors = {name: x.to(kinds[i % 3]) for i, (name, x) in enumerate(random_tensors(config_dict()).items())}
    assert {tensor.dtype for tensor in tensors.values()} == set(kinds)
    bundle = export(small_checkpoint(tensors=tensors, shards=2), target, precision=ExportPrecision.choose("fp32"))
    np.testing.assert_array_equal(bundle.embedding[:], tensors["transformer.wte.weight"].float())
    assert bundle.manifest.parity["passed"]


@pytest.mark.parametrize(
    "visual",
    [
        {"width": 128},  # no kv_proj
        {"n_queries": 9, "image_size": 28},  # more queries than patches
        {"image_size": 224, "n_queries": 256},  # neither position table is interpolated
        {"layers": 0},
    ],
)
def test_other_vision_dimensions(small_checkpoint, target, visual):
    bundle = export(small_checkpoint(raw=config_dict(visual)), target)
    assert bundle.manifest.parity["passed"]


def test_base_model(small_checkpoint, target):
    bundle = export(small_checkpoint(generation=GENERATION | {"chat_format": "raw"}), target)
    assert bundle.manifest.generation.chat_format == "raw"
    assert bundle.manifest.parity["passed"]


def test_exports_of_one_checkpoint_are_equal(small_checkpoint, target):
    source = small_checkpoint()
    first, second = export(source, target), export(source, target.with_name("again"))
    assert first.manifest.files == second.manifest.files
    assert first.manifest.provenance == second.manifest.provenance


def test_progress_goes_from_start_to_end(small_checkpoint, target):
    calls: list[tuple[int, int, str]] = []
    export(small_checkpoint(), target, progress=lambda *call: calls.append(call))
    comparing = next(i for i, call in enumerate(calls) if call[2].startswith("comparing: "))
    for part in (calls[:comparing], calls[comparing:]):
        done = [call[0] for call in part]
        assert done == sorted(done)
        assert done[-1] == part[-1][1]
    assert [*dict.fromkeys(call[2] for call in calls[: comparing + 1])] == [
        "writing vision.data",
        "writing decoder.data",
        "writing embedding.bin",
        "hashing the checkpoint",
        "comparing: pictures in PyTorch",
    ]


def test_progress_names_no_comparison_that_is_not_made(small_checkpoint, target):
    said: list[str] = []
    export(small_checkpoint(), target, check=False, progress=lambda _, __, what: said.append(what))
    assert said[-1] == "hashing the checkpoint"


@pytest.mark.parametrize(
    ("pattern", "nearest"), [("*.c_prj.*", "c_proj.weight"), ("head.*", "lm_head.weight"), ("*.mlp.w3.weight", "mlp.w")]
)
def test_a_pattern_that_matches_nothing(small_checkpoint, target, pattern, nearest):
    precision = ExportPrecision.choose("int4", keep=["lm_head.*", pattern])
    with pytest.raises(QwenVLError, match=rf'--keep-fp16 "{re.escape(pattern)}" matches no .* such as ".*{nearest}'):
        export(small_checkpoint(), target, precision=precision)
    assert listing(target.parent) == []


@pytest.mark.parametrize("visual", [{}, {"width": 128}])
def test_patterns_are_held_against_all_linear_layers(small_checkpoint, target, monkeypatch, visual):
    """The names that patterns are checked with are those that the graphs ask about."""
    asked = set()
    form = GraphPrecision.format
    monkeypatch.setattr(
        GraphPrecision, "format", lambda self, name, **options: asked.add(name) or form(self, name, **options)
    )
    source = small_checkpoint(raw=config_dict(visual))
    export(source, target, check=False)
    assert asked == set(Checkpoint.open(source).family.linear_names())


def test_a_small_model_that_8_bits_change_too_much_takes_floats(tmp_path):
    """Only where nobody asked for a precision; the sentence says so."""
    pytest.importorskip("transformers", reason="the reference of this family is transformers'")
    checkpoint, notes = DATA / "families" / "qwen2_vl", []
    bundle = export(checkpoint, tmp_path / "bundle", precision=ExportPrecision.choose(), note=notes.append)
    assert bundle.manifest.precision.decoder == bundle.manifest.precision.vision == "fp32"
    assert bundle.manifest.parity["passed"] and any("has float32; --precision int8" in note for note in notes)
    with pytest.raises(BundleError, match="do not compute what the checkpoint computes"):
        export(checkpoint, tmp_path / "asked", precision=ExportPrecision.choose("int8"))
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["bundle"]


def test_examples_are_copied_or_refused(small_checkpoint, tmp_path):
    checkpoint = small_checkpoint()
    file = checkpoint / "qwenvl-examples.json"
    file.write_text('{"examples": [{"pictures": ["a.png"], "questions": ["?"]}]}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r'names the picture "a.png", which is not beside it'):
        export(checkpoint, tmp_path / "bundle", check=False)
    assert not (tmp_path / "bundle").exists()
    (checkpoint / "a.png").write_bytes(b"png")
    bundle = export(checkpoint, tmp_path / "bundle", check=False)
    assert examples_of(bundle).pictures == ("a.png",)
    assert bundle.file("examples/a.png").read_bytes() == b"png"
