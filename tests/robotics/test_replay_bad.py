"""`qwenvl replay` on recordings that are damaged, of another kind or of odd form, and beside outputs of others."""

import re
import sys

import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.cli.program import main
from support.recordings import write_mcap_ros2, write_rosbag
from support.scripted import engine as scripted

pytest.importorskip("mcap_ros2", reason="the extra replay is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

from qwenvl_edge.robotics.replay.recordings import open_recording
from qwenvl_edge.robotics.replay.replaying import Replay, ReplaySettings
from support.replayed import TOPIC, read_back, replay


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


def test_without_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "mcap", None)
    write_mcap = tmp_path / "bag.mcap"
    write_mcap.write_bytes(b"")
    assert main(["replay", str(write_mcap), "Where?", "--bundle", "none", "--out", str(tmp_path / "out.mcap")]) == 2
    assert "pip install 'qwenvl-edge[replay]'" in capsys.readouterr().err
