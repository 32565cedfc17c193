"""The node among those of rmw_zenoh, between processes: its peers write keys, tokens and attachments out themselves."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qwenvl_edge.robotics import rmw_zenoh as adapter
from qwenvl_edge.robotics.node import VlmNode
from qwenvl_edge.robotics.ros_messages import image_to_rgb
from qwenvl_edge.robotics.ros_types import deserialize
from qwenvl_edge.robotics.wires.wire import SENSOR
from qwenvl_edge.robotics.wires.wire_node import WireNode
from support import wires
from support.moments import free_port
from support.patience import PATIENCE_S, until

pytest.importorskip("zenoh", reason="eclipse-zenoh is not installed")
pytest.importorskip("xxhash", reason="the extra rmw-zenoh is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

IMAGE = "sensor_msgs/msg/Image"
DOMAIN = 7


@pytest.fixture
def configs(tmp_path):
    """Configurations as rmw_zenoh's: of a router on a port of the test's own, and of sessions that know it."""
    port = free_port()
    common = {"scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": True}}}
    common["timestamping"] = {"enabled": {"router": True, "peer": True, "client": True}}
    address = f"tcp/127.0.0.1:{port}"
    router = {"mode": "router", "listen": {"endpoints": [address]}, "connect": {"endpoints": []}}
    peer = {"mode": "peer", "listen": {"endpoints": ["tcp/127.0.0.1:0"]}, "connect": {"endpoints": [address]}}
    for name, own in (("router", router), ("peer", peer)):
        (tmp_path / f"{name}.json5").write_text(json.dumps({**common, **own}))
    return {name: str(tmp_path / f"{name}.json5") for name in ("router", "peer")}


@pytest.fixture
def robot(configs):
    """Starts programs of the robot, after the router."""
    with wires.programs("zenoh_robot.py", configs["peer"]) as start:
        assert start("router", first=[configs["router"]]).stdout.readline() == "ready\n"
        yield start


@pytest.fixture
def serve(robot, configs, tmp_path):
    with wires.wire_nodes(lambda: adapter.ZenohWire(DOMAIN, config=configs["peer"]), tmp_path) as serve:
        yield serve


def test_a_picture_becomes_detections_with_its_header(robot, serve):
    """Keys, type hashes of Jazzy, CDR both ways, the stamp, and what comes with a message."""
    xxhash = pytest.importorskip("xxhash")
    graph = robot("graph")
    first, second = wires.detections_of_a_camera(robot, serve, count=2)
    assert second["number"] == first["number"] + 1 and 0 <= first["age_s"] < PATIENCE_S and first["size"] == 16
    # Others compute the sender's identifier from its token: the low 64 bits first, each half little-endian.
    token = next(line[2:].strip() for line in graph.stdout if "/MP/" in line and "%qwenvl%detections" in line)
    digest = xxhash.xxh3_128(token.encode()).intdigest()
    low, high = digest % 2**64, digest >> 64
    assert first["gid"] == (low.to_bytes(8, "little") + high.to_bytes(8, "little")).hex()


def test_a_question_and_a_subscriber_that_comes_late(robot, serve):
    wires.an_answer_waits_for_a_late_subscriber(robot, serve)


def test_cameras_side_by_side(robot, serve):
    wires.cameras_have_topics_of_their_own(robot, serve)


def test_a_large_picture_comes_whole_and_only_the_newest_waits(robot, configs):
    """2.7 MB in fragments of Zenoh; whoever does not take for a while has the newest one."""
    wire = adapter.ZenohWire(DOMAIN, config=configs["peer"])
    reader = wire.reader("/big", IMAGE, SENSOR)
    robot("camera", "big", 1280, 720, 9)
    stamps = []
    for _ in range(2):
        time.sleep(0.5)  # several come
        until(lambda: reader)
        (data,) = wire.take(reader)
        image = deserialize(data, IMAGE)
        stamps.append(image.header.stamp.sec * 10**9 + image.header.stamp.nanosec)
        pixels = image_to_rgb(image)
        assert pixels.shape == (720, 1280, 3)
        np.testing.assert_array_equal(pixels[[0, -1], [0, -1]], [[0, 0, 9]] * 2)
    wire.close()
    assert stamps[1] > stamps[0]


def test_a_parameter_changes_while_it_runs(robot, serve):
    told = wires.parameters_change(robot, serve)
    assert told["number"] == 11 and told["client"] is True


def test_the_node_is_in_the_graph_until_it_ends(robot, configs):
    """Tokens as rmw_zenoh's design document has them."""
    graph = robot("graph")
    wire = adapter.ZenohWire(DOMAIN, "/front/qwenvl", configs["peer"])
    WireNode(wire, {"/camera": VlmNode(object())}, "/front/qwenvl")
    came = [graph.stdout.readline().split("/") for _ in range(13)]
    assert {tuple(parts[:2]) for parts in came} == {("+ @ros2_lv", "7")}
    assert len({parts[2] for parts in came}) == 1 and {parts[3] for parts in came} == {"0"}
    (node,) = [parts for parts in came if parts[5] == "NN"]
    assert [each.strip() for each in node[6:]] == ["%", "%front", "qwenvl"] and node[3] == node[4]
    assert sorted(int(parts[4]) for parts in came) == list(range(13))
    ends = {(parts[5], parts[9]): parts[10:] for parts in came if parts[5] != "NN"}
    hash_of_images = "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47"
    assert ends["MS", "%camera"] == ["sensor_msgs::msg::dds_::Image_", hash_of_images, "2::,1:,:,:,,\n"]
    assert ends["MP", "%front%qwenvl%response"][2] == ":1:,10:,:,:,,\n"
    assert ends["SS", "%front%qwenvl%set_parameters"][0] == "rcl_interfaces::srv::dds_::SetParameters_"
    wire.close()
    assert all(graph.stdout.readline().startswith("- @ros2_lv/7/") for _ in range(13))


def test_without_zenoh(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "zenoh", None)
    assert adapter.main(["bundle"]) == 2
    assert "pip install 'qwenvl-edge[rmw-zenoh]'" in capsys.readouterr().err


def test_a_bad_configuration_is_one_sentence(tmp_path, capsys):
    config = tmp_path / "config.json5"
    config.write_text("{")
    assert adapter.main(["bundle", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "Zenoh cannot start" in error and error.count("\n") == 1


def test_the_program_ends_when_it_is_told(nano, robot, configs):
    """As a user starts it, on the demo's bundle."""
    command = [
        sys.executable,
        "-m",
        "qwenvl_edge.robotics.rmw_zenoh",
        str(nano),
        "--threads",
        "1",
        "--domain",
        str(DOMAIN),
    ]
    command += ["--config", configs["peer"], "--image", "/front", "--prompt", "Where is the red mug?"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline() == f"answering about /front in domain {DOMAIN}\n"
            robot("camera", "front", 64, 48, 200)
            assert "message" in wires.heard(robot("echo", "qwenvl/response", "String"))
            program.send_signal(signal.SIGINT)
            assert program.wait(PATIENCE_S) == 130
        finally:
            program.kill()
