from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference import expected_shapes
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint, write_weights
from support.reference import load_model

PUBLISHED = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "seq_length": 2048,
    "visual": {
        "width": 1664,
        "layers": 48,
        "heads": 16,
        "mlp_ratio": 4.9231,
        "patch_size": 14,
        "image_size": 448,
        "output_dim": 4096,
        "image_start_id": 151857,
    },
}


def test_expected_tensors_are_those_of_the_published_checkpoint():
    shapes = expected_shapes(QwenVLConfig.from_dict(PUBLISHED))
    assert len(shapes) == 853
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 9_656_935_168
    assert shapes["transformer.h.31.attn.c_attn.weight"] == (12288, 4096)
    assert shapes["transformer.visual.attn_pool.kv_proj.weight"] == (4096, 1664)
    assert shapes["transformer.visual.transformer.resblocks.47.attn.in_proj.bias"] == (4992,)


def test_kv_proj_is_absent_when_the_widths_are_equal():
    raw = config_dict({"width": 128})
    assert "transformer.visual.attn_pool.kv_proj.weight" not in expected_shapes(QwenVLConfig.from_dict(raw))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shards", "pickled"), [(1, False), (3, False), (1, True), (3, True)])
def test_every_layout_and_dtype_is_read(small_checkpoint, dtype, shards, pickled):
    tensors = random_tensors(config_dict(), dtype)
    checkpoint = Checkpoint.open(small_checkpoint(tensors=tensors, shards=shards, pickled=pickled))
    assert len(checkpoint.weight_files) == shards
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.tensor(name).dtype == dtype
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_load_model_takes_every_tensor(small_checkpoint):
    tensors = random_tensors(config_dict(), torch.bfloat16)
    model = load_model(Checkpoint.open(small_checkpoint(tensors=tensors)))
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in tensors.items())
    assert not model.training


def test_all_problems_are_in_one_error(small_checkpoint):
    tensors = random_tensors(config_dict())
    del tensors["lm_head.weight"], tensors["transformer.h.1.ln_2.weight"]
    tensors["transformer.h.0.attn.gate.weight"] = torch.zeros(3)
    tensors["transformer.ln_f.weight"] = torch.zeros(7)
    tensors["transformer.h.0.ln_1.weight"] = torch.zeros(128, dtype=torch.int32)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(small_checkpoint(tensors=tensors))
    message = str(caught.value)
    assert "5 problems" in message
    assert "2 missing (transformer.h.1.ln_2.weight [128] and 1 more)" in message
    assert "1 extra (transformer.h.0.attn.gate.weight)" in message
    assert "1 of another shape (transformer.ln_f.weight [7] instead of [128])" in message
    assert "1 not float32, float16 or bfloat16 (transformer.h.0.ln_1.weight int32)" in message


def test_missing_shards_are_named(small_checkpoint):
    folder = small_checkpoint(shards=4)
    for i in (2, 4):
        (folder / f"model-{i:05}-of-00004.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks 2 of 4 shards .*model-00002-of-00004.safetensors, model-00004-of-00004"
    ):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["config.json", "qwen.tiktoken", "model.safetensors"])
def test_missing_files_are_named(small_checkpoint, name):
    folder = small_checkpoint()
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.open(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        Checkpoint.open(tmp_path / "nowhere")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_weights(small_checkpoint, pickled, keep):
    folder = small_checkpoint(pickled=pickled)
    path = folder / ("pytorch_model.bin" if pickled else "model.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="cannot read the weights" if keep else "is empty; download it again"):
        Checkpoint.open(folder)


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(small_checkpoint, tmp_path, zipped):
    folder, trap = small_checkpoint(pickled=True), tmp_path / "executed"
    path = folder / "pytorch_model.bin"
    content = {"lm_head.weight": _Payload(trap)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        Checkpoint.open(folder)
    assert not trap.exists()


def test_python_files_of_the_checkpoint_are_not_run(small_checkpoint, tmp_path):
    folder, trap = small_checkpoint(), tmp_path / "executed"
    for name in ("modeling_qwen.py", "configuration_qwen.py", "__init__.py"):
        (folder / name).write_text(f"open({str(trap)!r}, 'w')")
    load_model(Checkpoint.open(folder))
    assert not trap.exists()


def test_a_pickle_that_holds_no_tensors_is_refused(small_checkpoint):
    folder = small_checkpoint(pickled=True)
    torch.save([1, 2, 3], folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        Checkpoint.open(folder)


def test_gptq_checkpoints_are_recognised(small_checkpoint):
    tensors = random_tensors(config_dict())
    del tensors["transformer.h.0.attn.c_attn.weight"]
    tensors["transformer.h.0.attn.c_attn.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
    with pytest.raises(CheckpointError, match=r"lacks transformer\.h\.0\.attn\.c_attn\.qzeros"):
        Checkpoint.open(small_checkpoint(tensors=tensors))


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": 1}}, "no weight_map"),
        ({"weight_map": {"a": "../stolen.safetensors"}}, "outside the folder"),
        ([], "not a JSON object"),
    ],
)
def test_bad_index(small_checkpoint, index, match):
    folder = small_checkpoint(shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=match):
        Checkpoint.open(folder)


def test_digest_follows_content(tmp_path):
    same = [write_checkpoint(tmp_path / name, seed=1) for name in ("a", "b")]
    other = write_checkpoint(tmp_path / "c", seed=2)
    read: list[int] = []
    digests = [Checkpoint.open(folder).digest(read.append) for folder in same]
    assert digests[0] == digests[1] != Checkpoint.open(other).digest()
    assert sum(read) == 2 * sum(path.stat().st_size for path in Checkpoint.open(same[0]).source_files)


def test_safetensors_are_preferred(small_checkpoint):
    folder = small_checkpoint()
    write_weights(folder, {"x": torch.zeros(1)}, pickled=True)
    assert [path.name for path in Checkpoint.open(folder).weight_files] == ["model.safetensors"]
