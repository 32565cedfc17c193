from __future__ import annotations

import pytest
import torch

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource
from qwenvl_edge_export.families.dynamic_vl.tensors import tensor_shapes
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference import expected_shapes
from tools import synthetic_families
from tools.synthetic_checkpoint import preset, random_tensor, write, write_settings


def test_the_full_preset_is_the_published_model():
    raw = preset("full")
    shapes = expected_shapes(QwenVLConfig.from_dict(raw))
    assert len(shapes) == 853
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 9_656_935_168
    assert shapes["transformer.visual.transformer.resblocks.47.mlp.c_fc.weight"] == (8192, 1664)
    assert (raw["vocab_size"], raw["visual"]["image_start_id"]) == (151936, 151857)


def test_one_billion_parameters():
    shapes = expected_shapes(QwenVLConfig.from_dict(preset("1b")))
    assert 0.9e9 < sum(torch.Size(shape).numel() for shape in shapes.values()) < 1.3e9


@pytest.mark.parametrize(("pickled", "suffix"), [(True, ".bin"), (False, ".safetensors")])
def test_a_checkpoint_in_several_shards_can_be_exported(tmp_path, pickled, suffix):
    folder = tmp_path / "checkpoint"
    count = write(folder, "tiny", pickled=pickled, shard_bytes=200_000)
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.weight_files) > 3
    assert {path.suffix for path in checkpoint.weight_files} == {suffix}
    names = checkpoint.family.tensors
    assert count == sum(torch.Size(shape).numel() for shape in names.values())
    assert {checkpoint.tensor(name).dtype for name in names} == {torch.bfloat16}
    assert export(folder, tmp_path / "bundle").manifest.parity["passed"]


def test_values_of_large_tensors_are_drawn_from_a_pool():
    values = random_tensor("x.weight", (5000, 4000)).float()
    assert values.std().item() == pytest.approx(4000**-0.5, rel=1e-2)
    assert not torch.equal(values, random_tensor("y.weight", (5000, 4000)).float())
    assert torch.equal(values, random_tensor("x.weight", (5000, 4000)).float())
    twins = [random_tensor(f"h.{layer}.weight", (64, 64)) for layer in (12, 21)]
    assert not torch.equal(*twins)  # ONNX Runtime keeps equal weights in memory once
    assert random_tensor("h.0.ln_1.weight", (64,)).float().mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("qwen2-vl-2b", 2_208_985_600, None),
        ("qwen2.5-vl-3b", 3_754_622_976, 824),
        ("qwen2.5-vl-7b", 8_292_166_656, None),
        ("qwen3-vl-2b", 2_127_532_032, None),
        ("qwen3-vl-4b", 4_437_815_808, 713),
        ("qwen3-vl-8b", 8_767_123_696, 750),
    ],
)
def test_later_presets_are_the_published_models(name, parameters, tensors):
    shapes = tensor_shapes(DynamicVLSource.from_dict(synthetic_families.preset(name)))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    assert tensors in (None, len(shapes))


def test_settings_of_a_later_preset(tmp_path):
    family = write_settings(tmp_path / "checkpoint", "qwen3-vl-2b")
    family.check_tokenizer(tmp_path / "checkpoint")
    info = family.family_info()
    assert (info.name, info.config["used_rows"], info.config["max_pixels"]) == ("qwen3_vl", 151_669, 1280 * 32 * 32)
    assert info.config["special_tokens"]["<|image_pad|>"] == 151_655
