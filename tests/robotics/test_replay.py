"""`qwenvl replay`: recordings by other libraries in, answers that other libraries read out."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine, QwenVLError
from qwenvl_edge.cli.program import main
from qwenvl_edge.robotics.ros_types import typestore
from support.recordings import SIZE, START_S, WRITERS, shades, stamps, write_foxglove, write_mcap_ros2, write_rosbag
from support.scripted import engine as scripted

pytest.importorskip("mcap_ros2", reason="the extra replay is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

from qwenvl_edge.robotics.replay.frames import FrameReader
from qwenvl_edge.robotics.replay.recordings import open_recording
from qwenvl_edge.robotics.replay.replaying import Replay, ReplaySettings

TOPIC = "/camera/image_raw"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


def write(name, folder):
    if name.startswith("foxglove,") and "JSON" not in name:
        pytest.importorskip("foxglove", reason="foxglove-sdk is not installed")
    return WRITERS[name](folder)


def replay(folder, bag, *answers, entries=None, stop_after=None, **settings):
    """Replay a bag with scripted answers; returns the settings. stop_after: interrupt after so many answers."""
    seen = [] if entries is None else entries
    (folder / "model").mkdir(exist_ok=True)
    recording = open_recording(bag)
    chosen = ReplaySettings(question="Where?", **{"out": folder / "answers.mcap", **settings})

    def take(entry, progress):
        seen.append(entry)
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt

    try:
        Replay(scripted(folder / "model", *answers)[0], recording, chosen).run(take)
    finally:
        recording.close()
    return chosen


def read_back(path):
    """The answers as mcap-ros2-support reads them: topic -> [(log time, message)]."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    found = {}
    with path.open("rb") as file:
        for each in make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages():
            found.setdefault(each.channel.topic, []).append((each.message.log_time, each.decoded_message))
    return found


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


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_an_interrupted_replay_goes_on_and_gives_the_same_bytes(tmp_path, stop_after):
    bag = write_mcap_ros2(tmp_path / "bag.mcap")
    answers = [f"answer {number}<|im_end|>" for number in range(6)]
    once, twice = tmp_path / "once.mcap", tmp_path / "twice.mcap"
    replay(tmp_path, bag, *answers, out=once)
    with pytest.raises(KeyboardInterrupt):
        replay(tmp_path, bag, *answers, out=twice, stop_after=stop_after)
    assert not twice.exists()
    with (tmp_path / "twice.mcap.journal").open("a") as journal:
        journal.write('{"log_ns": 17')  # cut in the middle of a line
    entries = []
    replay(tmp_path, bag, *answers[stop_after:], out=twice, entries=entries)
    assert [entry.text for entry in entries] == [f"answer {number}" for number in range(6)]
    assert once.read_bytes() == twice.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bag.mcap", "model", "once.mcap", "twice.mcap"]


def test_another_question_does_not_go_on_with_the_answers(tmp_path):
    bag = write_mcap_ros2(tmp_path / "bag.mcap")
    with pytest.raises(KeyboardInterrupt):
        replay(tmp_path, bag, "one<|im_end|>", stop_after=1)
    with pytest.raises(QwenVLError, match="holds the answers of another, interrupted replay"):
        replay(tmp_path, bag, "one<|im_end|>", every_s=1.0)
    assert (tmp_path / "answers.mcap.journal").exists()


def test_two_replays_do_not_write_one_file(tmp_path):
    bag = write_mcap_ros2(tmp_path / "bag.mcap")
    recording = open_recording(bag)
    (tmp_path / "model").mkdir()
    chosen = ReplaySettings(question="Where?", out=tmp_path / "answers.mcap")
    first = Replay(scripted(tmp_path / "model")[0], recording, chosen)
    with pytest.raises(QwenVLError, match=r"another replay writes .*now; give"):
        Replay(scripted(tmp_path / "model")[0], recording, chosen)
    assert first.resumed == 0


def test_an_output_that_is_there_stays(tmp_path):
    bag = write_mcap_ros2(tmp_path / "bag.mcap", 1)
    (tmp_path / "answers.mcap").write_text("mine")
    with pytest.raises(QwenVLError, match="is there already; give another --out, or --overwrite"):
        replay(tmp_path, bag)
    assert (tmp_path / "answers.mcap").read_text() == "mine"
    replay(tmp_path, bag, "red<|im_end|>", overwrite=True)
    assert read_back(tmp_path / "answers.mcap")["/qwenvl/response"][0][1].data == "red"


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


def test_damaged_frames_are_passed_over(tmp_path):
    """One frame of another encoding: its row says why, and the others are answered."""
    from mcap.writer import Writer

    bag = write_mcap_ros2(tmp_path / "bag.mcap", 3)
    recording = open_recording(bag)
    messages = list(recording.messages(TOPIC))
    recording.close()
    with bag.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2")
        schema = writer.register_schema(messages[0].form.kind, "ros2msg", messages[0].form.definition)
        channel = writer.register_channel(TOPIC, "cdr", schema)
        for number, message in enumerate(messages):
            data = message.data[:40] if number == 1 else message.data
            writer.add_message(channel, log_time=message.log_ns, publish_time=message.log_ns, data=data)
        writer.finish()
    entries = []
    replay(tmp_path, bag, "one<|im_end|>", "three<|im_end|>", entries=entries)
    assert [entry.failed for entry in entries] == [False, True, False]
    assert "cannot be decoded as sensor_msgs/msg/Image" in entries[1].text
    assert [message.data for _, message in read_back(tmp_path / "answers.mcap")["/qwenvl/response"]] == ["one", "three"]


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (lambda path: None, {}, "there is no recording at"),
        (lambda path: path.write_bytes(b"no bag at all"), {}, "cannot be read as a recording: .*magic"),
        (lambda path: path.write_bytes(b""), {}, "cannot be read as a recording"),
        (lambda path: path.mkdir(), {}, "has no metadata.yaml and no .mcap or .db3 file"),
        (lambda path: write_mcap_ros2(path, 0), {}, "has no topic with pictures"),
        (write_mcap_ros2, {"topic": "/depth"}, "has no topic '/depth'; its topics with pictures: /camera/image_raw"),
    ],
)
def test_bad_recordings_are_one_sentence(tmp_path, make, options, match):
    make(tmp_path / "bag.mcap")
    with pytest.raises(QwenVLError, match=match) as caught:
        replay(tmp_path, tmp_path / "bag.mcap", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "answers.mcap.journal").exists()


def test_a_damaged_rosbag_is_one_sentence(tmp_path):
    write_rosbag(tmp_path / "bag")
    next((tmp_path / "bag").glob("*.db3")).write_bytes(b"SQLite format 3\0" + bytes(200))
    with pytest.raises(QwenVLError, match="cannot be read as a recording"):
        replay(tmp_path, tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with pytest.raises(QwenVLError, match=r"cannot be read as a recording: .*YAML"):
        replay(tmp_path, tmp_path / "bag")


@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
def test_a_folder_whose_metadata_tells_another_qos(tmp_path, storage):
    """As rosbag2's own test recordings are: the file has no profile of QoS, metadata.yaml has one."""
    bag = write_rosbag(tmp_path / "bag", storage=storage)
    metadata = bag / "metadata.yaml"
    profile = "[{history: 1, depth: 10, reliability: 1, durability: 2, deadline: {sec: 1, nsec: 0}, "
    profile += "lifespan: {sec: 1, nsec: 0}, liveliness: 1, liveliness_lease_duration: {sec: 1, nsec: 0}, "
    profile += "avoid_ros_namespace_conventions: false}]"
    text = metadata.read_text()
    changed = re.sub(r"offered_qos_profiles:.*", f"offered_qos_profiles: '{profile}'", text)
    changed = re.sub(r"^(\s*version:) 9$", r"\1 5", changed, flags=re.MULTILINE)
    assert changed != text
    metadata.write_text(changed)
    recording = open_recording(bag)
    assert len(list(recording.messages(TOPIC))) == recording.topics[TOPIC].count == 6
    recording.close()


def test_a_topic_without_pictures(tmp_path):
    write_rosbag(tmp_path / "bag")
    with pytest.raises(QwenVLError, match="the topic '/chatter' has std_msgs/msg/String, no pictures"):
        replay(tmp_path, tmp_path / "bag", topic="/chatter")


def test_clips_are_refused_by_a_family_without(tmp_path):
    bag = write_mcap_ros2(tmp_path / "bag.mcap")
    with pytest.raises(QwenVLError, match="clip"):
        replay(tmp_path, bag, "red<|im_end|>", clip_s=1.0)


class Watched:
    """An engine that notes the times of the clips that it is shown."""

    can_chat = True

    def __init__(self, engine):
        self._engine, self.times = engine, []

    def chat(self, question, *, video, **options):
        self.times.append(list(video.seconds))
        return self._engine.chat(question, video=video, **options)


@pytest.mark.parametrize("resumed", [False, True])
def test_clips_hold_the_last_seconds(tmp_path, resumed):
    """Two frames a second of the last second, and the frame itself; the same after an interruption."""
    from support.families import scripted_engine

    bag = write_mcap_ros2(tmp_path / "bag.mcap", 8)
    settings = ReplaySettings(question="What?", out=tmp_path / "out.mcap", every_s=1.0, clip_s=1.0, clip_fps=2.0)

    def run(answers, on_entry=lambda entry, progress: None):
        engine = Watched(scripted_engine(tmp_path, "qwen2_vl", *answers)[0])
        recording = open_recording(bag)
        try:
            Replay(engine, recording, settings).run(on_entry)
        finally:
            recording.close()
        return engine.times

    def interrupt(entry, progress):
        raise KeyboardInterrupt

    if resumed:
        with pytest.raises(KeyboardInterrupt):
            run(["one<|im_end|>"], interrupt)
        assert run(["two<|im_end|>"]) == [[0.0, 0.5, 1.0]]
    else:
        assert run(["one<|im_end|>", "two<|im_end|>"]) == [[0.0], [0.0, 0.5, 1.0]]
    assert [message.data for _, message in read_back(tmp_path / "out.mcap")["/qwenvl/response"]] == ["one", "two"]


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


def test_without_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "mcap", None)
    write_mcap = tmp_path / "bag.mcap"
    write_mcap.write_bytes(b"")
    assert main(["replay", str(write_mcap), "Where?", "--bundle", "none", "--out", str(tmp_path / "out.mcap")]) == 2
    assert "pip install 'qwenvl-edge[replay]'" in capsys.readouterr().err
