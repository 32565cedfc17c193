"""`qwenvl info`, `list`, `plan --json`, `bench` and `completion` on real bundles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from qwenvl_edge import cli
from support.paths import DATA


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """A folder with a bundle, a damaged one deeper, and what is none."""
    shutil.copytree(tiny_bundle.path, tmp_path / "models" / "tiny")
    (tmp_path / "models" / "more" / "broken").mkdir(parents=True)
    (tmp_path / "models" / "more" / "broken" / "bundle.json").write_text("{}")
    (tmp_path / "models" / ".hidden").mkdir()
    (tmp_path / "models" / "pictures").mkdir()
    return tmp_path / "models"


def printed(capsys, *words):
    assert cli.main([*words]) == 0
    return capsys.readouterr().out


def test_info(tiny_bundle, capsys):
    text = printed(capsys, "info", str(tiny_bundle.path))
    assert "family            qwen_vl\n" in text and "chats             yes\n" in text
    facts = json.loads(printed(capsys, "info", str(tiny_bundle.path), "--json"))
    model = tiny_bundle.manifest.model
    assert (facts["layers"], facts["hidden_size"], facts["vocabulary"]) == (2, 256, model.vocab_size)
    assert facts["size_gb"] == round(sum(file.stat().st_size for file in _weights(tiny_bundle)) / 1e9, 3)
    assert facts["tensorrt_plans"] == [] and "standard" in facts["dialects"]


def _weights(bundle):
    return [bundle.path / name for name in bundle.manifest.files]


def test_list(folder, capsys):
    lines = printed(capsys, "list", str(folder)).splitlines()
    assert lines[0].split() == ["path", "family", "decoder", "vision", "size", "gb", "max", "context"]
    assert [line.split()[0] for line in lines[1:]] == [str(folder / "more" / "broken"), str(folder / "tiny")]
    assert 'has no "format"' in lines[1] and "qwen_vl" in lines[2]
    rows = [json.loads(line) for line in printed(capsys, "list", str(folder), "--json").splitlines()]
    assert "error" in rows[0] and rows[1]["family"] == "qwen_vl"


def test_nothing_to_list(tmp_path, capsys):
    assert "there is no bundle in" in printed(capsys, "list", str(tmp_path))
    assert cli.main(["list", str(tmp_path / "none")]) == 2


def test_plans_as_json(tiny_bundle, capsys):
    path = str(tiny_bundle.path)
    estimate = json.loads(printed(capsys, "plan", path, "--json"))
    parts = {name: size for name, size in estimate.items() if name not in ("total", "workspace", "picture")}
    assert estimate["total"] == sum(parts.values()) + max(estimate["workspace"], estimate["picture"])
    board = json.loads(printed(capsys, "plan", path, "--json", "--target", "orin-nano-8gb"))
    assert board["fits"] and board["spare"] > 0
    boards = json.loads(printed(capsys, "plan", path, "--json", "--target", "all"))
    assert board in boards and len(boards) > 10


def test_bench(tiny_bundle, capsys):
    words = ["bench", str(tiny_bundle.path), "--prompt", "48", "--tokens", "4", "--repeats", "2", "--threads", "1"]
    found = json.loads(printed(capsys, *words, "--image", str(DATA / "images" / "a.png"), "--json"))
    figures = {figure["what"]: figure for figure in found["figures"]}
    assert set(figures) == {"pp", "tg", "picture", "ttft"} and "ONNX Runtime" in found["runs"]
    assert abs(figures["pp"]["tokens"] - 48) <= 4 and figures["tg"]["tokens"] == 4
    assert all(0 < each["min"] <= each["median"] <= each["max"] for each in figures.values())
    text = printed(capsys, *words)
    assert "tokens/s" in text and text.count("\n") == 5
    assert cli.main([*words, "--prompt", "999999"]) == 2
    assert "do not fit into the context" in capsys.readouterr().err


def test_completion_in_bash(capsys, monkeypatch, tmp_path):
    script = tmp_path / "qwenvl.bash"
    script.write_text(printed(capsys, "completion", "bash"))
    ask = f'source {script}; COMP_WORDS=(qwenvl pl); COMP_CWORD=1; _shtab_qwenvl; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plan"]
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "zsh"]) == 2
    assert "pip install 'qwenvl-edge[completion]'" in capsys.readouterr().err
