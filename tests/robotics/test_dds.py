"""The node on ROS 2's DDS wire, between processes: its peers are programs that encode by Cyclone DDS itself."""

import os
import sys

import numpy as np
import pytest

from qwenvl_edge.robotics import dds as adapter
from qwenvl_edge.robotics.ros_messages import image_to_rgb
from qwenvl_edge.robotics.ros_types import deserialize
from qwenvl_edge.robotics.wires.wire import SENSOR
from support import wires
from support.patience import until

pytest.importorskip("cyclonedds.core", reason="cyclonedds is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

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
    with wires.programs("dds_robot.py", domain) as start:
        yield start


@pytest.fixture
def serve(domain, tmp_path):
    with wires.wire_nodes(lambda: adapter.Participant(domain), tmp_path) as serve:
        yield serve


def test_a_picture_becomes_detections_with_its_header(robot, serve):
    """Names, CDR both ways, best effort, the stamp and the type hash of Jazzy."""
    (told,) = wires.detections_of_a_camera(robot, serve)
    assert told["hashes"] == ["typehash=RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968;"]


def test_a_question_and_a_subscriber_that_comes_late(robot, serve):
    wires.an_answer_waits_for_a_late_subscriber(robot, serve)


def test_cameras_side_by_side(robot, serve):
    wires.cameras_have_topics_of_their_own(robot, serve)


def test_a_large_picture_comes_whole(robot, domain):
    """230 kB in fragments of DDS, by best effort."""
    participant = adapter.Participant(domain)
    reader = participant.reader("/big", "sensor_msgs/msg/Image", SENSOR)
    robot("camera", "big", 320, 240, 9)
    came = until(lambda: participant.take(reader))
    image = deserialize(came[-1], "sensor_msgs/msg/Image")
    pixels = image_to_rgb(image)
    assert pixels.shape == (240, 320, 3)
    np.testing.assert_array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [[0, 0, 9]])


def test_a_parameter_changes_while_it_runs(robot, serve):
    """By the services as rmw_cyclonedds's clients call them."""
    assert wires.parameters_change(robot, serve)["number"] == 7
    (value,) = wires.heard(robot("get", "qwenvl", "prompt"))["values"]
    assert (value["type"], value["string_value"]) == (4, "Where is the mug?")


def test_a_response_waits_until_who_asked_can_hear_it(robot, serve):
    """DDS finds a client's writer and its reader one after the other; a response before the latter would be lost."""
    serve({"/front": []}, prompt="What?")
    (value,) = wires.heard(robot("get", "qwenvl", "prompt", 0.3))["values"]
    assert value["string_value"] == "What?"


def test_the_node_is_in_the_graph(robot, serve):
    """As `ros2 node info` finds it: the node names its readers and writers, and DDS has found each of them."""
    serve({"/front": []})
    told = wires.heard(robot("graph", "/qwenvl", 18))
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
