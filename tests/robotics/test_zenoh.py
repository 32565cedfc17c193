"""The Zenoh queryable, asked over a real session."""

import io
import json
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.robotics import zenoh as adapter
from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from qwenvl_edge.robotics.zenoh import ZenohNode
from support.paths import ROOT
from support.patience import PATIENCE_S
from support.running import in_threads
from support.scripted import engine

zenoh = pytest.importorskip("zenoh", reason="eclipse-zenoh is not installed")

PICTURE = ROOT / "models" / "nano" / "demo.png"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_config(path, role, port):
    """A configuration that talks to this machine only."""
    ends = {"listen": {"endpoints": []}, "connect": {"endpoints": []}, role: {"endpoints": [f"tcp/127.0.0.1:{port}"]}}
    mode = "peer" if role == "listen" else "client"
    path.write_text(json.dumps({"mode": mode, "scouting": {"multicast": {"enabled": False}}, **ends}))
    return path


@pytest.fixture
def sides(tmp_path):
    """Two connected sessions: the robot's and the asker's."""
    port = free_port()
    with (
        zenoh.open(zenoh.Config.from_file(str(write_config(tmp_path / "robot.json5", "listen", port)))) as robot,
        zenoh.open(zenoh.Config.from_file(str(write_config(tmp_path / "asker.json5", "connect", port)))) as asker,
    ):
        yield robot, asker


@pytest.fixture
def serve(sides, tmp_path):
    """Starts a queryable over scripted answers."""
    with in_threads() as start:

        def serve(*answers, camera=None, **settings):
            vlm = VlmNode(engine(tmp_path, *answers)[0], NodeSettings(**settings))
            node = ZenohNode(sides[0], vlm, "robot/vlm", camera=camera)
            start(node.run, node.close)
            return vlm

        yield serve


def ask(session, question, picture=None):
    """The reply's JSON and whether it is an answer."""
    (reply,) = session.get("robot/vlm", payload=picture, attachment=question, timeout=PATIENCE_S)
    sample = reply.ok or reply.err
    assert sample.encoding == zenoh.Encoding.APPLICATION_JSON
    return json.loads(sample.payload.to_string()), reply.ok is not None


def png(shade=0):
    file = io.BytesIO()
    Image.fromarray(np.full((10, 20, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_and_a_question(sides, serve):
    serve(BOXED)
    answer, ok = ask(sides[1], "Where?", png())
    assert ok and answer["text"] == "dots are here" and answer["finish_reason"] == "stop"
    assert answer["boxes"] == [{"label": "dots", "x1": 0, "y1": 0, "x2": 10, "y2": 5}] and answer["size"] == [20, 10]


def test_the_newest_published_frame(sides, serve):
    serve("red<|im_end|>", camera="robot/camera")
    for shade in (1, 2):
        sides[0].put("robot/camera", png(shade))
    sides[0].put("robot/camera", b"no picture")
    for _ in range(100):  # frames and queries come by different threads
        answer, ok = ask(sides[1], "Which colour?")
        if ok:
            break
        assert "no frame has come yet" in answer["error"]
    assert answer["text"] == "red" and answer["latency_ms"] > 0


@pytest.mark.parametrize(
    ("question", "picture", "match"),
    [
        ("Where?", b"no picture", "the query's payload is not an image file"),
        (None, png(), "the query has no question"),
        (b"\xff\xfe", png(), "attachment is not UTF-8"),
        ("Where?", None, "no frame has come yet"),
    ],
)
def test_errors_are_replied_and_the_next_query_is_answered(sides, serve, question, picture, match):
    serve("fine<|im_end|>")
    answer, ok = ask(sides[1], question, picture)
    assert not ok and match in answer["error"]
    assert ask(sides[1], "Where?", png())[0]["text"] == "fine"


def test_the_program_answers_the_example(nano, tmp_path):
    """Both as a user starts them, in processes of their own."""
    port = free_port()
    robot, asker = (
        write_config(tmp_path / "r.json5", "listen", port),
        write_config(tmp_path / "a.json5", "connect", port),
    )
    command = [sys.executable, "-m", "qwenvl_edge.robotics.zenoh", str(nano), "--threads", "1", "--config", str(robot)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline() == "answering queries of qwenvl/ask\n"
            question = [
                sys.executable,
                str(ROOT / "examples" / "zenoh" / "ask.py"),
                str(PICTURE),
                "Where is the red mug?",
            ]
            run = subprocess.run(
                [*question, str(asker)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )
        finally:
            program.kill()
    assert run.returncode == 0, run.stderr
    expected = QwenVLEngine(nano, threads=1).chat("Where is the red mug?", images=[PICTURE])
    answer = json.loads(run.stdout)
    assert answer["text"] == expected.text
    assert [(box["label"], box["x1"]) for box in answer["boxes"]] == [(box.label, box.x1) for box in expected.boxes]


def test_without_zenoh(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "zenoh", None)
    assert adapter.main(["bundle"]) == 2
    assert "pip install 'qwenvl-edge[zenoh]'" in capsys.readouterr().err


def test_a_bad_configuration_is_one_sentence(nano, tmp_path, capsys):
    config = tmp_path / "config.json5"
    config.write_text("{")
    assert adapter.main([str(nano), "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "Zenoh cannot start" in error and error.count("\n") == 1
