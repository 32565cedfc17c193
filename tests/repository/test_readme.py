"""The Python of README.md, docs/python.md and docs/getting-started.md runs as it is printed, on the nano bundle."""

import re
import signal
import time

import pytest

from qwenvl_edge import FrameSource, QwenVLEngine
from support.paths import ROOT
from support.patience import PATIENCE_S

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WAIT_S = PATIENCE_S


@pytest.fixture
def workplace(tmp_path, monkeypatch, nano):
    """The current folder: like the repository's root after the commands that the pages name."""
    pytest.importorskip("llguidance", reason="constraints need the extra [constrained]")
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "out").mkdir()
    for bundle in ("out/nano", "nano-bundle"):
        (tmp_path / bundle).symlink_to(nano)
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def camera_that_hung(monkeypatch):
    """Cameras wait until their frame was looked at, and their second frame arrives a minute late."""
    put = FrameSource.put

    def late(camera, pixels):
        second = camera._count == 1
        put(camera, pixels, captured=time.monotonic() - 60 if second else None)
        until = time.monotonic() + WAIT_S
        while camera._slot is not None and time.monotonic() < until:
            time.sleep(0.001)

    monkeypatch.setattr(FrameSource, "put", late)


@pytest.fixture
def patient(monkeypatch):
    """Deadlines of seconds are met by busy machines too; those of milliseconds stay too short for any."""
    chat = QwenVLEngine.chat

    def later(engine, *arguments, deadline_ms=None, **options):
        if deadline_ms is not None and deadline_ms >= 1000:
            deadline_ms *= 100
        return chat(engine, *arguments, deadline_ms=deadline_ms, **options)

    monkeypatch.setattr(QwenVLEngine, "chat", later)


def run(page):
    """Run the blocks of a page; return their text and what they named."""
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return "".join(blocks), names


def test_the_python_of_the_readme_runs_as_printed(workplace, capsys):
    shown, names = run("README.md")
    assert len(shown.splitlines()) <= 6
    assert capsys.readouterr().out.startswith("the red mug (Box(")
    assert [box.label for box in names["reply"].boxes] == ["the red mug"]
    assert (workplace / "out" / "boxes.png").is_file()


def test_the_python_of_the_guide_runs_as_printed(workplace, camera_that_hung, patient, capsys):
    shown, names = run("docs/python.md")
    for call in ("history=", "engine.ground(", "Constraint.json(", "deadline_ms=", "FrameSource()"):
        assert call in shown
    assert (workplace / "out" / "boxes.png").is_file()
    assert [box.label for box in names["mug"].boxes] == ["the red mug"]
    printed = capsys.readouterr().out
    for answer in (
        *("the red mug\n", "Red.\n", "The green tree is now red.\n", "['Green.', 'Red.']\n"),
        *("A red mug, a blue car, a green tree and a sign that says EXIT.\nSOUTH (", "{'colour': 'green'}\nYes.\n"),
    ):
        assert answer in printed
    assert (names["late"].finish_reason, names["late"].text) == ("deadline", "")
    assert not names["stop"].cancelled
    signal.raise_signal(signal.SIGINT)
    assert names["stop"].cancelled
    # The loop went on after it; the frame was a minute old when it was put, and older when it was taken.
    assert re.search(r"frame 1 is \d{2,3},\d{3} ms old", printed)
    assert names["camera"].closed and names["camera"].dropped >= 1
    assert len(names["seen"]) + names["camera"].dropped == 20
    assert set(names["seen"]) == {"Yes."}


def test_the_python_of_getting_started_runs_as_printed(workplace, capsys):
    _, names = run("docs/getting-started.md")
    assert "the red mug" in capsys.readouterr().out and len(names["reply"].history) == 2
