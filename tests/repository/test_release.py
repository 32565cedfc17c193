"""What is published says what is in it: licence texts, the font, the parts compiled in."""

from __future__ import annotations

import importlib.metadata

import pytest
from release import complete_bom

from support.paths import ROOT

THIRD_PARTY = ROOT / "THIRD_PARTY_LICENSES.md"


def test_the_bill_of_materials_names_what_the_wheel_holds():
    document = THIRD_PARTY.read_text(encoding="utf-8")
    parts = {part["name"]: part for part in complete_bom.parts(document)}
    assert list(parts) == ["pybind11", "Unicode Character Database", "WenQuanYi Micro Hei"]
    texts = {name: part["evidence"]["licenses"][0]["license"]["text"]["content"] for name, part in parts.items()}
    assert "Redistributions in binary form must reproduce" in texts["pybind11"]
    assert "UNICODE LICENSE V3" in texts["Unicode Character Database"]
    assert "Apache License 2.0" in texts["WenQuanYi Micro Hei"]


@pytest.mark.parametrize("change", [("## pybind11", "## something new"), ("## pybind11", "## more\n\n## pybind11")])
def test_a_part_without_its_licence_is_an_error(change):
    with pytest.raises(SystemExit, match=r"THIRD_PARTY_LICENSES\.md has"):
        complete_bom.parts(THIRD_PARTY.read_text(encoding="utf-8").replace(*change))


@pytest.mark.parametrize("name", ["numpy", "pillow", "onnxruntime", "protobuf", "flatbuffers"])
def test_dependencies_have_their_texts(name, monkeypatch):
    monkeypatch.chdir(THIRD_PARTY.parent)
    texts = complete_bom.files_of(importlib.metadata.distribution(name))
    assert texts and all(len(entry["license"]["text"]["content"]) > 180 for entry in texts)


def test_no_text_is_an_error(tmp_path):
    folder = tmp_path / "bare-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bare\nVersion: 1\n")
    (bare,) = importlib.metadata.distributions(path=[str(tmp_path)])
    with pytest.raises(SystemExit, match="bare comes without the text of its licence"):
        complete_bom.files_of(bare)
