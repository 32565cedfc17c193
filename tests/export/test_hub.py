"""Checkpoints by their names on the Hugging Face Hub: huggingface_hub is the client, a server on loopback the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint import hub
from qwenvl_edge_export.checkpoint.hub import find_checkpoint, needed_files
from qwenvl_edge_export.families.qwen_vl.family import QwenVLExport
from support.hub_server import COMMITS, hub_server
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint, write_weights

pytest.importorskip("huggingface_hub")
MODEL = "some-org/a-model.v1"
PROGRAM = Path(__file__).parents[1] / "support" / "hub_openers.py"
WAIT_S = 300.0


@pytest.fixture
def server(tmp_path):
    with hub_server() as server:
        first = write_checkpoint(tmp_path / "published", shards=3, seed=1)
        for name in ("README.md", "modeling_qwen.py", "SimSun.ttf", "adapter_model.safetensors", "demo/photo.jpg"):
            (first / name).parent.mkdir(exist_ok=True)
            (first / name).write_bytes(b"not needed")
        write_weights(first, {"lm_head.weight": torch.zeros(1)}, shards=1, pickled=True)
        second = write_checkpoint(tmp_path / "second", seed=2)
        server.models[MODEL] = {COMMITS["main"]: first, COMMITS["v2"]: second}
        yield server


@pytest.fixture(scope="module")
def openers():
    """hub_openers.py at work."""
    command = [sys.executable, str(PROGRAM)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def opened(openers, server, tmp_path):
    """Opens a checkpoint in a process of its own, since huggingface_hub reads its environment when it is imported."""
    (tmp_path / "cwd").mkdir()

    def run(*arguments, **environment):
        variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        variables |= {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        asked = {"arguments": arguments, "environment": variables | environment, "cwd": str(tmp_path / "cwd")}
        openers.stdin.write(json.dumps(asked) + "\n")
        openers.stdin.flush()
        guard = threading.Timer(WAIT_S, openers.kill)
        guard.start()
        lines = []
        while (line := openers.stdout.readline()) not in ("\n", ""):
            lines.append(line)
        guard.cancel()
        assert len(lines) == 1, "the process ended without an answer"
        return lines[0].strip()

    return run


def head(seed):
    return float(random_tensors(config_dict(), seed=seed)["lm_head.weight"].double().sum())


def test_only_what_is_needed_is_fetched_into_the_cache_and_used_there(server, opened, tmp_path):
    words = opened(MODEL)
    word, path, total = words.split(" ")
    assert word == "OPENED" and float(total) == pytest.approx(head(1))
    assert Path(path) == tmp_path / "cache" / "hub" / "models--some-org--a-model.v1" / "snapshots" / COMMITS["main"]
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    small = {"config.json", "generation_config.json", "qwen.tiktoken", "model.safetensors.index.json"}
    assert server.fetched() == shards | small
    server.requests.clear()
    assert opened(MODEL) == words
    assert server.fetched() == set()
    server.requests.clear()
    assert opened(MODEL, HF_HUB_OFFLINE="1") == words
    assert server.requests == []
    server.models.clear()  # and with a Hub that is down
    assert opened(MODEL, HF_ENDPOINT="http://127.0.0.1:9") == words


def test_a_revision(server, opened):
    assert float(opened(MODEL, "v2").split()[2]) == pytest.approx(head(2))
    assert float(opened(MODEL, COMMITS["main"]).split()[2]) == pytest.approx(head(1))
    assert opened(MODEL, "v3") == f'ERROR the model "{MODEL}" has no revision "v3".'


def test_a_broken_transfer_is_continued(server, opened, tmp_path):
    raw = config_dict(vocab_size=24_000)  # the client keeps what it has of a file every ten megabytes
    tensors = random_tensors(raw, seed=6)
    server.models["some-org/large"] = {COMMITS["main"]: write_checkpoint(tmp_path / "large", raw=raw, tensors=tensors)}
    server.cut = {"model.safetensors"}
    first = opened("some-org/large")
    words = first if first.startswith("OPENED") else opened("some-org/large")  # the client may try again by itself
    assert float(words.split()[2]) == pytest.approx(float(tensors["lm_head.weight"].double().sum()))
    assert server.ranges == ["model.safetensors"]


def test_pickles_only_where_there_is_nothing_else(server, opened, tmp_path):
    only = write_checkpoint(tmp_path / "pickled", shards=2, pickled=True, seed=3)
    server.models["some-org/pickled"] = {COMMITS["main"]: only}
    assert float(opened("some-org/pickled").split()[2]) == pytest.approx(head(3))


def test_what_cannot_be_fetched(server, opened, tmp_path):
    missing = opened("some-org/mistyped")
    assert missing.startswith('ERROR there is neither a folder "some-org/mistyped" nor a model of that name on the Hub')
    server.gated.add(MODEL)
    assert "is gated: accept its terms" in opened(MODEL)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    server.models["some-org/adapter"] = {COMMITS["main"]: adapter}
    assert "has no config.json, so it is no checkpoint" in opened("some-org/adapter")
    assert "HF_HUB_OFFLINE is set" in opened("some-org/never", HF_HUB_OFFLINE="1")
    assert "the Hub cannot be reached" in opened("some-org/never", HF_ENDPOINT="http://127.0.0.1:9")


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(server, opened, tmp_path):
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    (llama / "model.safetensors").write_bytes(b"gigabytes")
    server.models["some-org/llama"] = {COMMITS["main"]: llama}
    assert 'model of type "llama", which is not supported' in opened("some-org/llama")
    assert server.fetched() == {"config.json"}


def test_a_folder_comes_before_a_model(server, opened, tmp_path):
    (tmp_path / "cwd" / "some-org").mkdir()
    write_checkpoint(tmp_path / "cwd" / MODEL, seed=4)
    assert opened(MODEL).split()[1] == MODEL
    assert server.requests == []
    assert "so it has no revision" in opened(MODEL, "v2")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", 'no checkpoint folder at "nowhere"'),
        ("./nowhere/at", "no checkpoint folder at"),
        ("/nowhere/at/all", 'no checkpoint folder at "/nowhere/at/all"'),
        ("a/b/c", "no checkpoint folder at"),
        ("~/models", "no checkpoint folder at"),
        ("org/name/", "no checkpoint folder at"),
        ("https://huggingface.co/Qwen/Qwen-VL-Chat/tree/main", "write the model's name, Qwen/Qwen-VL-Chat"),
        ("hf://Qwen/Qwen-VL-Chat", "write the model's name, Qwen/Qwen-VL-Chat"),
        ("", "no checkpoint folder|config.json"),
        ("x\0y", "no checkpoint folder|cannot open"),
    ],
)
def test_names_that_are_paths(tmp_path, monkeypatch, name, match):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_fetched", lambda *_: pytest.fail("it was taken for a model"))
    with pytest.raises(CheckpointError, match=match):
        from qwenvl_edge_export.checkpoint.reader import Checkpoint

        Checkpoint.open(name)


def test_without_the_library_the_line_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"folder at \"org/name\".* run: pip install 'qwenvl-edge\[hub\]'$"):
        find_checkpoint("org/name")


def test_files_that_an_export_reads():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "README.md", "quantize_config.json", "x/a.json"]
    assert needed_files("m", names, QwenVLExport) == ["config.json", "quantize_config.json", "model.safetensors"]
    with pytest.raises(CheckpointError, match="several indices"):
        needed_files("m", ["a.safetensors.index.json", "b.safetensors.index.json"], QwenVLExport)
