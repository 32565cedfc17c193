"""The node on ROS 2's DDS wire, between processes: its peers are programs that encode by Cyclone DDS itself."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from qwenvl_edge.robotics import dds as adapter
from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from qwenvl_edge.robotics.ros_messages import image_to_rgb
from qwenvl_edge.robotics.ros_types import deserialize
from qwenvl_edge.robotics.wires.wire import SENSOR
from qwenvl_edge.robotics.wires.wire_node import WireNode
from support.paths import ROOT
from support.patience import PATIENCE_S
from support.scripted import engine

pytest.importorskip("cyclonedds.core", reason="cyclonedds is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"
# This machine only, without multicast, which a container may lack.
HERE = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name='lo' multicast='false'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<MaxAutoParticipantIndex>60</MaxAutoParticipantIndex>"
    "<Peers><Peer address='127.0.0.1'/></Peers></Discovery>"
    "<Internal><SocketReceiveBufferSize max='10MB'/></Internal></Domain></CycloneDDS>"
)


@pytest.fixture
def domain(monkeypatch, request):
    """A domain of the test's own: another one beside it does not hear it."""
    monkeypatch.setenv("CYCLONEDDS_URI", HERE)
    return 20 + (os.getpid() * 7 + len(request.node.name)) % 200


@pytest.fixture
def robot(domain):
    """Starts programs of the robot; they end with the test."""
    started = []

    def start(*arguments):
        command = [sys.executable, str(ROOT / "tests" / "support" / "dds_robot.py"), str(domain), *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


@pytest.fixture
def serve(domain, tmp_path):
    """Starts a node over scripted answers, an engine for each camera."""
    running = []

    def serve(cameras, **settings):
        nodes = {}
        for number, (topic, answers) in enumerate(cameras.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            nodes[topic] = VlmNode(engine(folder, *answers)[0], NodeSettings(**settings))
        node = WireNode(adapter.Participant(domain), nodes)
        thread = threading.Thread(target=node.run)
        thread.start()
        running.append((node, thread))
        return nodes

    yield serve
    for node, thread in running:
        node.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_picture_becomes_detections_with_its_header(robot, serve):
    """Names, CDR both ways, best effort, the stamp and the type hash of Jazzy."""
    serve({"/front/image_raw": [BOXED] * 400}, prompt="Where?", max_rate_hz=20.0)
    robot("camera", "front/image_raw", 20, 10, 7)
    detections = robot("echo", "qwenvl/detections", "Detection2DArray")
    heard = json.loads(detections.stdout.readline())
    array = heard["message"]
    assert (
        array["header_"]["frame_id_"] == "front/image_raw_frame" and array["header_"]["stamp_"]["sec_"] > 1_700_000_000
    )
    (detection,) = array["detections_"]
    assert detection["header_"] == array["header_"]
    assert (detection["bbox_"]["size_x_"], detection["bbox_"]["size_y_"]) == (10.0, 5.0)
    assert detection["results_"][0]["hypothesis_"] == {"class_id_": "dots", "score_": 1.0}
    assert heard["hashes"] == ["typehash=RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968;"]


def test_a_question_and_a_subscriber_that_comes_late(robot, serve):
    """The answer is given before anybody listens; who subscribes then gets the last one."""
    nodes = serve({"/front/image_raw": ["red<|im_end|>"] * 400})
    robot("camera", "front/image_raw", 20, 10, 7)
    asking = robot("ask", "qwenvl/prompt", "Which colour?")
    until_answered(nodes["/front/image_raw"])
    asking.kill()
    late = robot("echo", "qwenvl/response", "String")
    assert json.loads(late.stdout.readline())["message"] == {"data_": "red"}


def until_answered(node):
    from support.patience import until

    until(lambda: node.status.answered)


def test_cameras_side_by_side(robot, serve):
    """Each has its own topics, and its own newest picture."""
    serve({"/left": ["left<|im_end|>"] * 400, "/right": ["right<|im_end|>"] * 400}, prompt="What?", max_rate_hz=10.0)
    for side in ("left", "right"):
        robot("camera", side, 20, 10, 7)
    heard = {side: robot("echo", f"qwenvl/{side}/response", "String") for side in ("left", "right")}
    for side, program in heard.items():
        assert json.loads(program.stdout.readline())["message"]["data_"] == side


def test_a_large_picture_comes_whole(robot, domain):
    """230 kB in fragments of DDS, by best effort."""
    participant = adapter.Participant(domain)
    reader = participant.reader("/big", "sensor_msgs/msg/Image", SENSOR)
    robot("camera", "big", 320, 240, 9)
    while not (came := participant.take(reader)):
        participant.wait(1.0)
    image = deserialize(came[-1], "sensor_msgs/msg/Image")
    pixels = image_to_rgb(image)
    assert pixels.shape == (240, 320, 3)
    np.testing.assert_array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [[0, 0, 9]])


def test_a_parameter_changes_while_it_runs(robot, serve):
    """By the services as rmw_cyclonedds's clients call them; a value out of its range changes nothing."""
    nodes = serve({"/front": ["red<|im_end|>"] * 400}, prompt="What?", max_rate_hz=10.0)
    told = json.loads(robot("set", "qwenvl", "prompt", '"Where is the mug?"').stdout.readline())
    assert told["results_"] == [{"successful_": True, "reason_": ""}] and told["number_"] == 7
    assert nodes["/front"].settings == NodeSettings(prompt="Where is the mug?", max_rate_hz=10.0)
    (refused,) = json.loads(robot("set", "qwenvl", "max_rate_hz", "-1.0").stdout.readline())["results_"]
    assert not refused["successful_"] and "greater than 0" in refused["reason_"]
    assert nodes["/front"].settings.max_rate_hz == 10.0
    (value,) = json.loads(robot("get", "qwenvl", "prompt").stdout.readline())["values_"]
    assert (value["type_"], value["string_value_"]) == (4, "Where is the mug?")


def test_the_node_is_in_the_graph(robot, serve):
    """As `ros2 node info` finds it: the node names its readers and writers, and DDS has found each of them."""
    serve({"/front": []})
    told = json.loads(robot("graph", "/qwenvl", 18).stdout.readline())
    assert told["enclave"] == "enclave=/;"
    assert {"rt/front", "rt/qwenvl/prompt", "rq/qwenvl/set_parametersRequest"} < set(told["readers"])
    assert {"rt/qwenvl/detections", "rt/diagnostics", "rt/parameter_events"} < set(told["writers"])


def test_without_cyclonedds(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cyclonedds.core", None)
    assert adapter.main(["bundle"]) == 2
    assert "pip install 'qwenvl-edge[dds]'" in capsys.readouterr().err


def test_a_bad_domain_is_one_sentence(capsys):
    assert adapter.main(["bundle", "--domain", "100000"]) == 2
    error = capsys.readouterr().err
    assert "DDS cannot start" in error and error.count("\n") == 1
