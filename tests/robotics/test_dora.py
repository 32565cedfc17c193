"""The dora node: in a real dataflow, and event by event."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.robotics import dora as adapter
from qwenvl_edge.robotics.dora import DoraNode
from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from support.paths import ROOT
from support.patience import PATIENCE_S
from support.scripted import engine

pa = pytest.importorskip("pyarrow", reason="dora needs pyarrow")
pytest.importorskip("dora", reason="dora-rs is not installed")

DORA = Path(sys.executable).with_name("dora")
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


@pytest.mark.skipif(not DORA.exists(), reason="dora-rs-cli is not installed")
def test_the_example_dataflow_answers(nano, tmp_path):
    """camera -> VLM -> printer, as a user runs it."""
    for file in (ROOT / "examples" / "dora").glob("*.*"):
        shutil.copy(file, tmp_path)
    flow = tmp_path / "question.yml"
    picture = ROOT / "models" / "nano" / "demo.png"
    text = flow.read_text().replace("../../out/nano", str(nano)).replace("../../models/nano/demo.png", str(picture))
    flow.write_text(text)
    command = [str(DORA), "run", str(flow), "--stop-after", f"{PATIENCE_S:.0f}s"]
    quiet = {"RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"}  # else the reason is lost in front of Rust's stack
    path = f"{DORA.parent}{os.pathsep}{os.environ['PATH']}"
    activated = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": path, **quiet}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False, cwd=tmp_path, env=activated
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    lines = [json.loads(line) for line in re.findall(r"stdout printer:\s+(\{.*\})", run.stdout + run.stderr)]
    answer, bbox = ({line["id"]: line for line in lines}[name] for name in ("text", "bbox"))

    expected = QwenVLEngine(nano, threads=1).chat("Where is the red mug?", images=[picture])
    (box,) = expected.boxes
    assert answer["value"] == [expected.text] and answer["metadata"]["primitive"] == "text"
    assert answer["metadata"]["asked_by"] == "picture_camera"
    assert bbox["type"] == "struct<bbox: list<item: float>, conf: list<item: float>, labels: list<item: string>>"
    assert bbox["value"][0]["labels"] == ["the red mug"] and bbox["value"][0]["conf"] == [1.0]
    assert bbox["value"][0]["bbox"] == pytest.approx([box.x1, box.y1, box.x2, box.y2])
    assert (bbox["metadata"]["format"], bbox["metadata"]["primitive"]) == ("xyxy", "boxes2d")
    assert (bbox["metadata"]["width"], bbox["metadata"]["height"]) == expected.pictures[0].size


class Wire:
    """A dora.Node whose events the test dictates: each batch is what has come by the next look."""

    def __init__(self, *batches):
        self._batches = [list(batch) for batch in batches]
        self.sent, self.errors, self.timeouts = [], [], []

    def next(self, timeout=None):
        self.timeouts.append(timeout)
        while not self._batches[0]:
            self._batches.pop(0)
        return self._batches[0].pop(0)

    def drain(self):
        return self._batches.pop(0) if self._batches else []

    def timestamp(self):
        return NOW

    def send_output(self, name, value, metadata):
        self.sent.append((name, value.to_pylist()[0], metadata))

    def log_error(self, message):
        self.errors.append(message)


def image(shade=0, *, encoding="bgr8", size=12, age_s=0.0, **metadata):
    metadata |= {"encoding": encoding, "width": 2, "height": 2, "timestamp": NOW - datetime.timedelta(seconds=age_s)}
    return {"type": "INPUT", "id": "image", "value": pa.array(np.full(size, shade, np.uint8)), "metadata": metadata}


def text(*words, **metadata):
    return {"type": "INPUT", "id": "text", "value": pa.array(words), "metadata": {**metadata, "timestamp": NOW}}


STOP = {"type": "STOP", "id": "MANUAL"}
CLOSED = {"type": "STOP", "id": "ALL_INPUTS_CLOSED"}


@pytest.fixture
def run(tmp_path):
    """Runs the node over scripted answers and batches of events; returns the wire."""

    def run(answers, *batches, **settings):
        qwen, _ = engine(tmp_path, *answers)
        wire = Wire(*batches)
        DoraNode(wire, VlmNode(qwen, NodeSettings(**settings))).run()
        return wire

    return run


def test_metadata_of_frame_and_question_come_back(run):
    wire = run([BOXED], [text("Where?", turn=3), image(camera="left")], [CLOSED])
    assert [(name, value) for name, value, _ in wire.sent] == [
        ("text", "dots are here"),
        ("bbox", {"bbox": [0, 0, 1, 1], "conf": [1], "labels": ["dots"]}),
    ]
    assert wire.sent[1][2] == {
        **{"camera": "left", "turn": 3, "encoding": "bgr8", "width": 2, "height": 2},
        **{"primitive": "boxes2d", "format": "xyxy"},
    }
    assert wire.sent[0][2]["finish_reason"] == "stop"


def test_what_came_before_the_inputs_closed_is_answered(run):
    assert run(["red<|im_end|>"], [image(), text("Which colour?"), CLOSED]).sent[0][1] == "red"


def test_an_answer_without_boxes_clears_the_drawing(run):
    wire = run(["red<|im_end|>"], [image(), text("Which colour?"), CLOSED])
    assert wire.sent[1][1] == {"bbox": [], "conf": [], "labels": []}


def test_a_stop_ends_the_answer(run):
    wire = run(["one two three<|im_end|>"], [image(), text("Count.")], [], [STOP])
    assert wire.sent[0][1] != "one two three" and wire.sent[0][2]["finish_reason"] == "cancelled"


def test_the_standing_prompt_and_its_timeout(run):
    timeout = {"type": "ERROR", "error": "Timeout event stream error: Receiver timed out\n\nStack"}
    wire = run(["one<|im_end|>"], [image()], [timeout, image()], [CLOSED], prompt="What?", max_rate_hz=0.001)
    assert [value for name, value, _ in wire.sent if name == "text"] == ["one"]
    assert wire.errors == [] and wire.timeouts[0] is None and 0 < wire.timeouts[1] <= 1000


@pytest.mark.parametrize(
    ("event", "match"),
    [
        (image(encoding="palette4"), "input image: the frame's encoding is 'palette4'"),
        (image(size=11), "input image: the frame has 11 bytes"),
        (text("a", "b"), "input text: the value is not an array of one string"),
        (text(""), "input text: the question is empty"),
        ({**image(), "id": "depth"}, "input depth: there is no such input"),
        ({"type": "ERROR", "error": "the daemon is gone\ntrace"}, "^the daemon is gone$"),
    ],
)
def test_bad_events_are_logged_and_the_node_goes_on(run, event, match):
    wire = run(["red<|im_end|>"], [event], [image(), text("Which colour?"), CLOSED])
    assert len(wire.errors) == 1 and re.search(match, wire.errors[0])
    assert wire.sent[0][1] == "red"


def test_stale_frames_are_logged(run):
    """The clock goes on meanwhile: between the ages and the limit is room for a busy machine."""
    old = [image(age_s=900.0), text("First?")]
    wire = run(["red<|im_end|>"], old, [image(), text("Second?"), CLOSED], max_age_ms=600_000)
    assert len(wire.errors) == 1 and re.search(r"the newest frame is 9\d\d,?\d{3} ms old", wire.errors[0])
    assert wire.sent[0][1] == "red"


def test_without_dora(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dora", None)
    assert adapter.main(["bundle"]) == 2
    assert "pip install 'qwenvl-edge[dora]'" in capsys.readouterr().err


def test_a_bad_bundle_is_one_sentence(capsys):
    assert adapter.main(["missing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith('qwenvl_edge.robotics.dora: there is no bundle at "missing"') and error.count("\n") == 1
