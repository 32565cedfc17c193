"""What the README shows of Python runs as it is printed, on the nano bundle."""

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the bundle and the picture that the README speaks of, which is the current one."""
    exporter = pytest.importorskip("qwenvl_edge_export.exporter", reason="exporting needs PyTorch")
    pytest.importorskip("llguidance", reason="constraints need the extra [constrained]")
    exporter.export(ROOT / "models" / "nano", tmp_path / "out" / "nano")
    Image.open(ROOT / "models" / "nano" / "demo.png").convert("RGB").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run_as_printed(workplace):
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    shown = "".join(blocks)
    for call in ("history=", "engine.ground(", "Constraint.json(", "deadline_ms=", "FrameSource()"):
        assert call in shown
    assert (workplace / "boxes.png").is_file()
    assert [box.label for box in names["mug"].boxes] == ["the red mug"]
    assert set(names["answer"]) == {"thing", "colour"}
    assert names["late"].finish_reason in ("deadline", "stop")
    assert len(names["seen"].pictures) == 1 and names["camera"].dropped == 1
