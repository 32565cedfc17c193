"""The ROS 2 node on a stand-in for rclpy and the message packages."""

import ast
import io
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge.robotics import ros2 as adapter
from qwenvl_edge.robotics import ros2_lifecycle as lifecycle
from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from qwenvl_edge.robotics.parameters import DEFAULTS
from qwenvl_edge.robotics.ros2 import RosNode, import_ros
from support import ros_stand_in as ros
from support.paths import ROOT
from support.patience import until
from support.running import in_threads
from support.scripted import engine

PACKAGES = ROOT / "examples" / "ros2"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


@pytest.fixture
def start(install, tmp_path):
    """Starts a node over scripted answers; returns the rclpy node."""
    with in_threads() as run:

        def start(*answers, compressed=False, **settings):
            node = install()
            vlm = VlmNode(engine(tmp_path, *answers)[0], NodeSettings(**settings))
            run(RosNode(node, import_ros(), vlm, compressed=compressed).run, vlm.close)
            return node

        yield start


def image(shade=0, *, sec=100, nanosec=0, size=24, frame_id="camera_optical"):
    """2 rows of 3 pixels, each row padded to 12 bytes."""
    header = ros.Header(stamp=ros.Time(sec=sec, nanosec=nanosec), frame_id=frame_id)
    return ros.Image(header=header, height=2, width=3, encoding="bgr8", step=12, data=bytes([shade]) * size)


def test_prompt_and_image_become_response_and_detections(start):
    node = start(BOXED)
    node.send("image", image(nanosec=0))
    node.send("prompt", ros.String(data="Where?"))
    assert node.published["response"].wait().data == "dots are here"
    array = node.published["detections"].wait()
    (detection,) = array.detections
    for header in (array.header, detection.header):
        assert (header.stamp.sec, header.frame_id) == (100, "camera_optical")
    assert (detection.bbox.size_x, detection.bbox.size_y) == (1.5, 1)
    assert (detection.bbox.center.position.x, detection.bbox.center.position.y) == (0.75, 0.5)
    (hypothesis,) = detection.results
    assert (hypothesis.hypothesis.class_id, hypothesis.hypothesis.score) == ("dots", 1.0)


def test_the_image_subscription_keeps_the_newest(start):
    _, _, qos = start().subscribed["image"]
    assert (qos.depth, qos.reliability) == (1, "best effort")


def test_a_standing_prompt_on_compressed_images(start):
    node = start("red<|im_end|>", compressed=True, prompt="Which colour?")
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "JPEG")
    node.send("image", ros.CompressedImage(format="jpeg", data=file.getvalue()))
    assert node.published["response"].wait().data == "red"
    assert node.published["detections"].wait().detections == []


def test_ages_come_from_the_stamps(start):
    """On a clock that stands at 100 s; the wall's adds what the test itself takes, which the limits leave room for."""
    node = start("red<|im_end|>", prompt="Which colour?", max_age_ms=90_000)
    node.send("image", image(sec=1))
    until(lambda: node.warnings)
    assert re.search(r"is (99|1\d\d),?\d{3} ms old, older than the limit of 90", node.warnings[0])
    node.send("image", image(sec=99, nanosec=600_000_000))
    assert node.published["response"].wait().data == "red" and len(node.warnings) == 1
    figures = node.published["detections"].wait().header.stamp
    assert figures.nanosec == 600_000_000


@pytest.mark.parametrize(
    ("topic", "message", "match"),
    [
        ("image", image(size=23), "image: the frame has 23 bytes"),
        ("prompt", ros.String(data=" "), "prompt: the question is empty"),
    ],
)
def test_bad_messages_are_warned_of(start, topic, message, match):
    node = start()
    node.send(topic, message)
    assert match in node.warnings[0]


def test_an_action_streams_its_answer(start):
    node = start(BOXED)
    node.send("image", image())
    goal = ros.Goal("Where?")
    result = node.action(goal)
    assert (goal.ended, result.text, result.finish_reason) == ("succeeded", "dots are here", "stop")
    assert "".join(goal.pieces) == "dots are here" and len(goal.pieces) > 1
    assert result.detections.header.frame_id == "camera_optical" and len(result.detections.detections) == 1


def test_an_action_can_be_cancelled(start):
    node = start("one two three four<|im_end|>")
    node.send("image", image())
    goal = ros.Goal("Count.", cancel_after=2)
    assert node.cancel_callback(goal) == 2
    result = node.action(goal)
    assert (goal.ended, result.finish_reason) == ("canceled", "cancelled")
    assert 0 < len(result.text) < len("one two three four")


def test_an_action_without_an_image_is_aborted(start):
    goal = ros.Goal("Where?")
    result = start().action(goal)
    assert (goal.ended, result.finish_reason) == ("aborted", "error") and "no frame has come yet" in result.text


def test_diagnostics(start):
    node = start(BOXED)
    (diagnose,) = node.timers
    node.action(ros.Goal("Where?"))
    diagnose()
    (status,) = node.published["/diagnostics"].wait().status
    assert (status.level, status.message[:12]) == (b"\1", "no frame has")
    node.send("image", image())
    node.action(ros.Goal("Where?"))
    diagnose()
    array = node.published["/diagnostics"].wait()
    (status,) = array.status
    figures = {pair.key: pair.value for pair in status.values}
    assert (status.level, status.message, status.name) == (b"\0", "fine", "qwenvl: answers")
    assert (figures["answered"], figures["failed"], array.header.stamp.sec) == ("1", "1", 100)


def test_without_ros(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert adapter.main([]) == 2
    error = capsys.readouterr().err
    assert "needs ROS 2, where rclpy was not found" in error and error.count("\n") == 1


def test_the_packages_name_what_the_node_uses():
    manifest = ET.parse(PACKAGES / "qwenvl_edge_ros" / "package.xml").getroot()
    depends = {element.text for element in manifest.iter("exec_depend")}
    used = {module.partition(".")[0] for module in adapter._ROS}
    assert len(used) == 7 and used <= depends


def test_the_launch_file_sets_known_parameters():
    source = (PACKAGES / "qwenvl_edge_ros" / "launch" / "vlm.launch.py").read_text()
    arguments = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"
    )
    known = {**lifecycle._READ_ONCE, **DEFAULTS, "autostart": True}
    for name, entry in zip(arguments.keys, arguments.values, strict=True):
        assert type(known[name.value]).__name__ == entry.elts[1].id
