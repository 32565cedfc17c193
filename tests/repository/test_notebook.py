"""The notebook runs from its folder and shows what it gives; after a change, tools/notebook.py writes it again."""

import copy
import json

import pytest

from support.paths import ROOT
from tools import notebook

PATH = ROOT / "examples" / "notebook" / "first_steps.ipynb"
RIGHT = (
    "the red mug [",
    "What colour is the car? Blue.",
    "Is there a purple star? No.",
    "What does the sign say? EXIT",
    "树是什么颜色的? 绿色。",
    "'The green tree is now red.'",
    "A red mug, a blue car, a green tree and a sign that says EXIT.",
    "mug ['red']\ncar ['blue']\ntree ['green']",
)


def words(cell):
    """What a cell shows, without pictures."""
    parts = (output.get("text") or output["data"].get("text/plain") for output in cell["outputs"])
    return "".join(line for part in parts for line in part)


def test_the_notebook_shows_what_it_gives(monkeypatch):
    pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")
    pytest.importorskip("llguidance", reason="constraints need the extra [constrained]")
    kept = json.loads(PATH.read_text(encoding="utf-8"))
    monkeypatch.chdir(PATH.parent)
    again = copy.deepcopy(kept)
    notebook.run(again)
    pairs = [pair for pair in zip(kept["cells"], again["cells"], strict=True) if pair[0]["cell_type"] == "code"]
    for shown, found in pairs:
        if "times" not in shown["metadata"].get("tags", ()):
            assert words(shown) == words(found)
    shown = "\n".join(words(cell) for cell, _ in pairs)
    assert all(right in shown for right in RIGHT)
    assert sum("image/png" in output.get("data", {}) for cell, _ in pairs for output in cell["outputs"]) == 1
