"""Checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL as their writers left them, and those that are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.dynamic_vl.tensors import EMBEDDING, HEAD, canonical
from qwenvl_edge_export.options import ExportPrecision
from support.golden_graphs import FAMILIES, golden
from support.random_checkpoint import write_weights


@pytest.fixture
def copied(tmp_path):
    """Makes a copy of a golden checkpoint, with other tensors and changes of its JSON files."""

    def copy(family, tensors=None, shards=1, **changes):
        folder = tmp_path / family
        shutil.copytree(golden(family), folder, ignore=shutil.ignore_patterns("*.npz", "images"))
        if tensors is not None:
            (folder / "model.safetensors").unlink()
            write_weights(folder, tensors, shards=shards)
        for name, change in changes.items():
            path = folder / f"{name}.json"
            raw = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({key: value for key, value in (raw | change).items() if value is not None}))
        return folder

    return copy


def weights(family):
    return load_file(golden(family) / "model.safetensors")


def digests(folder, place, **options):
    """SHA-256 of a bundle's weights."""
    manifest = export(folder, place, check=False, **options).manifest
    return {name: info.sha256 for name, info in manifest.files.items() if name.endswith((".data", ".bin"))}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_transformers_and_shards_give_the_same_bundle(copied, family, tmp_path):
    renamed = {canonical(name): tensor for name, tensor in weights(family).items()}
    folder = copied(family, renamed, shards=3)
    assert len(Checkpoint.open(folder).weight_files) == 3
    assert digests(folder, tmp_path / "a") == digests(golden(family), tmp_path / "b")


def test_a_tied_head_may_be_repeated_but_not_differ(copied, tmp_path):
    tensors = weights("qwen3_vl")
    repeated = tensors | {HEAD: tensors[EMBEDDING].clone()}
    assert HEAD not in Checkpoint.open(copied("qwen3_vl", repeated)).family.tensors
    shutil.rmtree(tmp_path / "qwen3_vl")
    with pytest.raises(CheckpointError, match=r"ties lm_head\.weight to .* but the two differ"):
        Checkpoint.open(copied("qwen3_vl", repeated | {HEAD: tensors[EMBEDDING] + 1}))


def test_an_untied_head_that_is_missing(copied):
    tensors = weights("qwen2_5_vl")
    del tensors[HEAD]
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        Checkpoint.open(copied("qwen2_5_vl", tensors))


def test_where_nothing_says_tied_the_head_does(copied, tmp_path):
    silent = {"config": {"tie_word_embeddings": None}}
    assert not Checkpoint.open(copied("qwen2_5_vl", **silent)).family.config.text.tied
    assert Checkpoint.open(copied("qwen2_vl", **silent)).family.config.text.tied


def test_the_top_level_flag_decides(copied):
    raw = json.loads((golden("qwen3_vl") / "config.json").read_text())
    nested = raw["text_config"] | {"tie_word_embeddings": False}
    assert Checkpoint.open(copied("qwen3_vl", config={"text_config": nested})).family.config.text.tied


def test_a_tokenizer_in_one_file(copied, tmp_path):
    folder = copied("qwen2_5_vl")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    bundle = export(folder, tmp_path / "bundle", check=False)
    assert bundle.manifest.tokenizer == "tokenizer.json" and bundle.file("tokenizer.json").is_file()


def test_thinking_and_limits_are_in_the_bundle(copied, tmp_path):
    template = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    folder = copied("qwen3_vl", chat_template={"chat_template": template})
    config = export(folder, tmp_path / "bundle", check=False, min_pixels=8192, max_pixels=32768).manifest.family.config
    assert (config["thinking"], config["min_pixels"], config["max_pixels"]) == (True, 8192, 32768)
    with pytest.raises(QwenVLError, match="no size is left"):
        export(folder, tmp_path / "other", check=False, max_pixels=100)
    assert not (tmp_path / "other").exists()


def test_pictures_of_one_size_have_no_limits(tiny_checkpoint, tmp_path):
    with pytest.raises(QwenVLError, match="Qwen-VL have one size"):
        export(tiny_checkpoint, tmp_path / "bundle", max_pixels=5000)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "qwen3_vl_moe"}, '"qwen3_vl_moe" .*a mixture of experts'),
        ({"model_type": "qwen3_5"}, '"qwen3_5" .*its decoder is a recurrent one'),
        ({"num_experts": 128}, "it is a mixture of experts"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]}}, "YaRN"),
    ],
)
def test_models_that_are_refused(copied, change, match):
    with pytest.raises(CheckpointError, match=match):
        Checkpoint.open(copied("qwen2_vl", config=change))


def test_adapters_are_refused(copied):
    tensors = weights("qwen2_vl")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(8, 96)
    with pytest.raises(CheckpointError, match="adapter"):
        Checkpoint.open(copied("qwen2_vl", tensors))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4", "w8a8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_precision_is_written(family, precision, tmp_path):
    chosen = ExportPrecision.choose(precision, target="cpu" if precision.startswith("int") else "gpu")
    manifest = export(golden(family), tmp_path / "bundle", precision=chosen, check=False).manifest
    assert manifest.precision.decoder == precision
    blocked = precision in ("int8", "int4")
    assert (manifest.precision.kept != "") == (blocked and family == "qwen3_vl")  # widths 80 and 144


def test_a_broken_tensor_is_named(copied):
    tensors = weights("qwen2_vl")
    tensors["visual.merger.mlp.0.weight"] = tensors["visual.merger.mlp.0.weight"][:-1].clone()
    with pytest.raises(CheckpointError, match=r"visual\.merger\.mlp\.0\.weight"):
        Checkpoint.open(copied("qwen2_vl", tensors))
