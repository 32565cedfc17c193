"""Files that are not what their names say: one sentence each, soon, and no other error than CheckpointError."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint

PLAIN = random_tensors(config_dict())
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 9731786240\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>401</title></head></html>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint", tensors=PLAIN)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def refused(folder, match):
    start = time.process_time()
    with pytest.raises(CheckpointError, match=match) as caught:
        Checkpoint.open(folder)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert time.process_time() - start < 10  # of the processor: a second


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "qwen.tiktoken", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty; download it again"),
        (LFS, 'is a Git LFS pointer, not the file itself; run "git lfs pull"'),
        (HTML, "is a web page"),
        (b"\xef\xbb\xbf \n" + HTML.lower(), "is a web page"),
        (b"\x1f\x8b\x08\x00 and so on", "is a gzip archive"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    ],
)
def test_stand_ins_for_files(folder, name, content, match):
    (folder / name).write_bytes(content)
    refused(folder, match)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "qwen.tiktoken", "model.safetensors"])
def test_what_is_no_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "is a folder where a file is expected")
    (folder / name).rmdir()
    (folder / name).symlink_to(folder / "blobs" / "0123")
    refused(folder, "is a link to a file that is not there")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "is a device, pipe or socket")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "."])
def test_what_may_not_be_read(folder, name):
    (folder / name).chmod(0)
    refused(folder, "[Pp]ermission denied")
    (folder / name).chmod(0o700)


def test_links_to_blobs_as_the_hubs_cache_has_them(folder):
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(f"../blobs/{number:040x}")
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.tensor("lm_head.weight"), PLAIN["lm_head.weight"])
    assert checkpoint.digest()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"hidden_size": ', "is not JSON"),
        ("{'hidden_size': 4}", "is not JSON"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("PK\x03\x04 zip", "is not JSON"),
    ],
)
def test_configurations_that_are_no_json(folder, text, match):
    (folder / "config.json").write_text(text)
    refused(folder, match)


@pytest.mark.parametrize(
    ("encoding", "match"), [("utf-16", "text in UTF-16; save it as UTF-8"), ("utf-16-le", None), ("utf-8-sig", None)]
)
def test_encodings(folder, encoding, match):
    path = folder / "config.json"
    path.write_bytes(path.read_text().encode(encoding))
    if match:
        refused(folder, match)
    elif encoding == "utf-8-sig":  # a byte order mark harms nobody
        assert Checkpoint.open(folder).family.name == "qwen_vl"
    else:
        refused(folder, "is not JSON")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("hidden_size", None, r"lacks hidden_size \(it is null\)"),
        ("hidden_size", -128, "hidden_size is -128; it must be a whole number from 1 to"),
        ("hidden_size", 0, "hidden_size is 0"),
        ("hidden_size", 10**400, "hidden_size is 1000"),
        ("hidden_size", 128.5, "hidden_size is 128.5"),
        ("hidden_size", True, "hidden_size is true"),
        ("hidden_size", "128", 'hidden_size is "128"'),
        ("hidden_size", [128], "hidden_size is a list of 1"),
        ("hidden_size", {}, "hidden_size is an object of 0"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
        ("vocab_size", float("inf"), "vocab_size is Infinity"),
        ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon is NaN"),
        ("layer_norm_epsilon", 0, "layer_norm_epsilon is 0"),
        ("rotary_emb_base", float("-inf"), "rotary_emb_base is -Infinity"),
        ("use_dynamic_ntk", "false", 'use_dynamic_ntk is "false"; it must be true or false'),
        ("visual", [], "visual is a list of 0; it must be an object"),
        ("visual", None, "lacks visual, the picture side"),
        ("model_type", 7, 'model of type "7"'),
        ("model_type", ["qwen"] * 10_000, "model of type"),
        ("model_type", "llama", r'model of type "llama", which is not supported; supported are .*Qwen-VL \("qwen"\)'),
        ("quantization_config", 4, "quantization_config .* is not an object"),
    ],
)
def test_values_of_a_configuration(folder, key, value, match):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(folder, match)


@pytest.mark.parametrize("key", ["width", "layers", "image_size", "patch_size", "mlp_ratio", "image_start_id"])
@pytest.mark.parametrize("value", [None, -1, 10**12, float("inf"), "8", {}])
def test_values_of_the_picture_side(folder, key, value):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["visual"][key] = value
    path.write_text(json.dumps(raw))
    refused(folder, f"visual.{key}")


def test_null_is_absent(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"rotary_emb_base": None, "use_logn_attn": None, "quantization_config": None}))
    assert Checkpoint.open(folder).family.config.rope_base == 10_000


def replaced(folder, save):
    (folder / "model.safetensors").unlink()
    save(folder)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        lambda t: {"state_dict": t},
        lambda t: {"module": t, "epoch": 3, "optimizer": {"lr": 1.0}},
        lambda t: {"model": {f"module.{name}": tensor for name, tensor in t.items()}, "step": torch.tensor(3)},
        lambda t: {"state_dict": {"model": t}},
        lambda t: t | {"epoch": 3},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_trainers(folder, content, zipped):
    def save(place):
        torch.save(content(dict(PLAIN)), place / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)

    checkpoint = Checkpoint.open(replaced(folder, save))
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in PLAIN.items())


def test_old_pickles_in_shards(folder):
    def save(place):
        names = list(PLAIN)
        for part in range(3):
            tensors = {name: PLAIN[name] for name in names[part::3]}
            torch.save(
                tensors, place / f"pytorch_model-0000{part + 1}-of-00003.bin", _use_new_zipfile_serialization=False
            )

    checkpoint = Checkpoint.open(replaced(folder, save))
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in PLAIN.items())


class Settings:
    """Stands for the objects that trainers pickle beside the tensors."""


def test_pickled_objects_are_named_and_never_made(folder):
    replaced(folder, lambda place: torch.save({"model": PLAIN, "args": Settings()}, place / "pytorch_model.bin"))
    refused(folder, r"holds Python objects besides tensors \(.*Settings\), which are never executed")


def test_the_content_counts_and_not_the_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert torch.equal(Checkpoint.open(folder).tensor("lm_head.weight"), PLAIN["lm_head.weight"])
    torch.save(dict(PLAIN), folder / "model.safetensors")
    refused(folder, 'is a file of torch.save, not of safetensors; rename it to ".bin"')


def test_a_header_whose_length_begins_like_a_pickle(folder):
    path = folder / "model.safetensors"
    for size in range(300):
        save_file(PLAIN, path, metadata={"made": "x" * size})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert torch.equal(Checkpoint.open(folder).tensor("lm_head.weight"), PLAIN["lm_head.weight"])


def test_an_archive_is_no_file_of_torch(folder):
    def save(place):
        with zipfile.ZipFile(place / "pytorch_model.bin", "w") as archive:
            archive.writestr("model.safetensors", b"inside")

    refused(replaced(folder, save), r"is a zip archive \(model.safetensors\)")


def shards(place, numbers, total, stem="model", suffix=".safetensors"):
    names = list(PLAIN)
    for number in numbers:
        tensors = {name: PLAIN[name] for name in names[number - 1 :: total]}
        save_file(tensors, place / f"{stem}-{number:05}-of-{total:05}{suffix}")


def test_shards_without_an_index(folder):
    checkpoint = Checkpoint.open(replaced(folder, lambda place: shards(place, (1, 2, 3), 3)))
    assert len(checkpoint.weight_files) == 3
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in PLAIN.items())


def test_shards_without_an_index_are_counted(folder):
    replaced(folder, lambda place: shards(place, (2, 5), 9))
    refused(folder, r"lacks 7 of 9 shards: number 1, number 3, number 4 and 4 more \(there is model-00002-of-00009")


def test_shards_of_two_models(folder):
    def save(place):
        shards(place, (1, 2), 2)
        shards(place, (1, 2, 3), 3)

    refused(replaced(folder, save), "shards of several models")


@pytest.mark.parametrize("name", ["gptq_model-4bit-128g.safetensors", "consolidated.safetensors", "w.safetensors"])
def test_files_of_other_names(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    (folder / "adapter_model.safetensors").write_bytes(b"of somebody else")
    (folder / "optimizer.bin").write_bytes(b"no weights")
    assert [path.name for path in Checkpoint.open(folder).weight_files] == [name]


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.pt", "epoch=3.ckpt"])
def test_pickles_of_other_names(folder, name):
    replaced(folder, lambda place: torch.save(dict(PLAIN), place / name))
    (folder / "training_args.bin").write_bytes(b"\x80 not read")
    (folder / "rng_state_0.pth").write_bytes(b"\x80 not read")
    assert [path.name for path in Checkpoint.open(folder).weight_files] == [name]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (
            {"adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen-VL"}},
            'holds an adapter of "Qwen/Qwen-VL" without',
        ),
        ({"adapter_model.safetensors": {}}, r"holds an adapter .*merge_and_unload"),
        ({"model.Q4_K_M.gguf": {}}, r"model.Q4_K_M.gguf is GGUF \(llama.cpp\)"),
        ({"zero_to_fp32.py": {}}, "zero_to_fp32.py is DeepSpeed's parts"),
        ({"model-00001-of-00002.safetensors.incomplete": {}}, "is not downloaded to its end"),
        ({}, "has no weights, neither model.safetensors nor pytorch_model.bin; it holds 3 files"),
    ],
)
def test_folders_without_weights(folder, names, match):
    (folder / "model.safetensors").unlink()
    for name, content in names.items():
        (folder / name).write_text(json.dumps(content))
    refused(folder, match)


@pytest.mark.parametrize("what", ["adapter", "bundle", "nothing", "parent", "file"])
def test_folders_that_are_no_checkpoint(folder, tmp_path, what):
    if what == "file":
        refused(folder / "config.json", "is a file; give the checkpoint's folder")
        return
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    if what == "adapter":
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen-VL-Chat"}')
        refused(folder, 'holds an adapter of "Qwen/Qwen-VL-Chat" without its model; merge it with PEFT')
    elif what == "bundle":
        (folder / "bundle.json").write_text("{}")
        refused(folder, "is a bundle, not a checkpoint")
    elif what == "parent":
        write_checkpoint(folder / "checkpoint-500", tensors=PLAIN)
        refused(folder, r'lacks config.json; there is one in "checkpoint-500"')
    else:
        refused(folder, "lacks config.json")


def test_random_bytes(folder):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 8, 9, 100, 5000):
        data = bytes(torch.randint(256, (size,), generator=generator, dtype=torch.uint8).numpy())
        for name in ("model.safetensors", "config.json"):
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(data)
            refused(folder, "checkpoint|cannot read|is not")
            (folder / name).write_bytes(whole)
