"""`qwenvl replay`: recordings by other libraries in, answers that other libraries read out."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.cli.program import main
from qwenvl_edge.robotics.ros_types import typestore
from support.recordings import SIZE, START_S, WRITERS, shades, stamps, write_foxglove, write_mcap_ros2, write_rosbag

pytest.importorskip("mcap_ros2", reason="the extra replay is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

from qwenvl_edge.robotics.replay.frames import FrameReader
from qwenvl_edge.robotics.replay.recordings import open_recording
from support.replayed import BOXED, TOPIC, read_back, replay


def write(name, folder):
    if name.startswith("foxglove,") and "JSON" not in name:
        pytest.importorskip("foxglove", reason="foxglove-sdk is not installed")
    return WRITERS[name](folder)


@pytest.mark.parametrize("name", WRITERS)
def test_frames_of_every_kind_of_recording(tmp_path, name):
    recording = open_recording(write(name, tmp_path))
    assert recording.topics[TOPIC].count == 6
    messages = list(recording.messages(TOPIC))
    frames = [FrameReader().read(message) for message in messages]
    recording.close()
    for frame, pixels, (at, stamp) in zip(frames, shades(6), stamps(6), strict=True):
        np.testing.assert_array_equal(frame.picture.pixels, pixels)
        assert (frame.log_ns, frame.stamp, frame.frame_id) == (at, stamp, "camera_optical")
    assert recording.start_ns <= START_S * 10**9 < recording.end_ns


def test_answers_have_the_stamps_of_their_frames(tmp_path):
    """Read with other libraries: text, detections and annotations of every frame."""
    write_rosbag(tmp_path / "bag")
    replay(tmp_path, tmp_path / "bag", *[BOXED] * 6)
    found = read_back(tmp_path / "answers.mcap")
    assert sorted(found) == ["/qwenvl/annotations", "/qwenvl/detections", "/qwenvl/response"]
    for topic in found:
        assert [at for at, _ in found[topic]] == [at for at, _ in stamps(6)]
    assert {message.data for _, message in found["/qwenvl/response"]} == {"dots are here"}
    for (_, array), (_, stamp) in zip(found["/qwenvl/detections"], stamps(6), strict=True):
        (detection,) = array.detections
        for header in (array.header, detection.header):
            assert (header.stamp.sec, header.stamp.nanosec, header.frame_id) == (*stamp, "camera_optical")
        centre, size = detection.bbox.center.position, (detection.bbox.size_x, detection.bbox.size_y)
        assert (centre.x, centre.y, *size) == (SIZE[0] / 4, SIZE[1] / 4, SIZE[0] / 2, SIZE[1] / 2)
        assert detection.results[0].hypothesis.class_id == "dots" and detection.results[0].hypothesis.score == 1
    for (_, drawn), (_, stamp) in zip(found["/qwenvl/annotations"], stamps(6), strict=True):
        (shape,), (label,) = drawn.points, drawn.texts
        assert [(point.x, point.y) for point in shape.points] == [(0, 0), (6, 0), (6, 4), (0, 4)]
        assert (shape.type, label.text, (shape.timestamp.sec, shape.timestamp.nanosec)) == (2, "dots", stamp)
        assert shape.outline_color.a == 1 and label.font_size > 0


def test_rosbags_opens_the_answers_and_their_type_hashes_are_right(tmp_path):
    """rosbags computes the hashes of the definitions itself and compares them."""
    from rosbags.highlevel import AnyReader

    write_rosbag(tmp_path / "bag")
    replay(tmp_path, tmp_path / "bag", *[BOXED] * 2, every_s=1.0, with_frames=True)
    with AnyReader([tmp_path / "answers.mcap"]) as reader:
        kinds = {connection.topic: connection.msgtype for connection in reader.connections}
        assert kinds["/qwenvl/detections"] == "vision_msgs/msg/Detection2DArray"
        assert kinds[TOPIC] == "sensor_msgs/msg/Image"
        pictures = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages() if c.topic == TOPIC]
    assert [int(picture.data[2]) for picture in pictures] == [0, 40]


def test_type_hashes_are_those_of_the_distributions():
    """As `ros2 topic info --verbose` of Jazzy shows them."""
    from qwenvl_edge.robotics.ros_types import type_hash

    assert type_hash("std_msgs/msg/String").startswith("RIHS01_df668c740482bbd4")
    assert type_hash("sensor_msgs/msg/Image").startswith("RIHS01_d31d41a9a4c4bc8e")
    assert typestore().fielddefs["vision_msgs/msg/Detection2DArray"]


@pytest.mark.parametrize(("every_s", "asked"), [(0.0, 6), (0.25, 6), (0.3, 5), (0.5, 3), (1.0, 2), (60.0, 1)])
def test_every(tmp_path, every_s, asked):
    entries = []
    write_rosbag(tmp_path / "bag")
    replay(tmp_path, tmp_path / "bag", *["red<|im_end|>"] * asked, entries=entries, every_s=every_s)
    assert len(entries) == asked
    gaps = np.diff([entry.log_ns for entry in entries])
    assert all(gap > (every_s - 0.25) * 1e9 for gap in gaps)


def test_csv(tmp_path):
    bag = write_mcap_ros2(tmp_path / "bag.mcap", 1)
    replay(tmp_path, bag, BOXED, csv=tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    seconds, rest = stamps(1)[0][1]
    assert line["stamp"] == f"{seconds}.{rest:09d}" and line["text"] == "dots are here"
    assert json.loads(line["boxes"]) == [{"label": "dots", "x1": 0, "y1": 0, "x2": 6, "y2": 4}]


def test_rerun(tmp_path):
    """Its own reader finds the frames' times, the boxes and the text."""
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    from rerun.chunk import RrdReader

    bag = write_mcap_ros2(tmp_path / "bag.mcap", 2)
    replay(tmp_path, bag, BOXED, "red<|im_end|>", rerun=str(tmp_path / "answers.rrd"))
    chunks = list(RrdReader(tmp_path / "answers.rrd").store().stream().to_chunks())
    columns = {chunk.entity_path: chunk.to_record_batch() for chunk in chunks}
    assert {"/camera", "/camera/boxes", "/answer"} <= set(columns)
    texts = [value for chunk in chunks if chunk.entity_path == "/answer" for value in _column(chunk, "text")]
    assert texts == [["dots are here"], ["red"]]
    times = [value for chunk in chunks if chunk.entity_path == "/answer" for value in _column(chunk, "recorded")]
    assert times == [at for at, _ in stamps(2)]


def _column(chunk, name):
    batch = chunk.to_record_batch()
    (found,) = [each for each in batch.schema.names if each.endswith(name)]
    column = batch.column(found)
    return (column.cast("int64") if str(column.type).startswith("timestamp") else column).to_pylist()


def test_the_example_recording(tmp_path):
    from support.paths import ROOT

    example = [sys.executable, str(ROOT / "examples" / "replay" / "record.py"), str(tmp_path / "demo.mcap")]
    pictures = [str(ROOT / "models" / "nano" / name) for name in ("demo.png", "later.png")]
    subprocess.run([*example, *pictures], check=True)
    entries = []
    replay(tmp_path, tmp_path / "demo.mcap", BOXED, BOXED, entries=entries)
    assert [entry.log_ns % 10**9 for entry in entries] == [0, 500_000_000]
    assert entries[0].boxes[0].x2 == 320 and entries[0].frame_id == "camera_optical_frame"


def test_the_program(nano, tmp_path, capsys):
    """As a user runs it, against the engine's own answer about the same picture; twice the same bytes."""
    from PIL import Image

    from support.paths import ROOT
    from support.recordings import png

    picture = np.asarray(Image.open(ROOT / "models" / "nano" / "demo.png").convert("RGB"))
    pytest.importorskip("foxglove", reason="foxglove-sdk is not installed")
    bag = write_foxglove(tmp_path / "bag.mcap", pictures=[picture] * 3)
    command = ["replay", str(bag), "Where is the red mug?", "--bundle", str(nano), "--every", "500ms", "--threads", "1"]
    assert main([*command, "--out", str(tmp_path / "one.mcap"), "--csv", str(tmp_path / "one.csv")]) == 0
    said = capsys.readouterr()
    expected = QwenVLEngine(nano, threads=1).chat("Where is the red mug?", images=[png(picture)])
    (box,) = expected.boxes
    corners = f"[{box.x1:.0f}, {box.y1:.0f}, {box.x2:.0f}, {box.y2:.0f}]"
    assert said.out == "".join(f"    {time} s  {expected.text}  {box.label} {corners}\n" for time in ("0.000", "0.500"))
    assert re.search(r"qwenvl: 2 frames; 0\.5 of 0\.5 s of the recording in .* times real time\n$", said.err)
    (_, first), _ = read_back(tmp_path / "one.mcap")["/qwenvl/detections"]
    assert first.detections[0].bbox.size_x == pytest.approx(box.x2 - box.x1)
    run = subprocess.run(
        [sys.executable, "-m", "qwenvl_edge", *command, "--out", str(tmp_path / "two.mcap")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "one.mcap").read_bytes() == (tmp_path / "two.mcap").read_bytes()
    assert main([*command, "--out", str(tmp_path / "one.mcap")]) == 2
    assert "is there already" in capsys.readouterr().err
