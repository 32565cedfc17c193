"""The scene of a node on one of ROS 2's wires: cameras and other programs of a robot, and the node that answers."""

import contextlib
import json
import subprocess
import sys
import threading

from qwenvl_edge.robotics.node import NodeSettings, VlmNode
from qwenvl_edge.robotics.wires.wire_node import WireNode
from support.paths import ROOT
from support.patience import PATIENCE_S, until
from support.scripted import engine

CAMERA = "/front/image_raw"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"
PICTURE = (20, 10, 7)  # width, height, shade
MANY = 400  # answers: a camera is asked about again and again


@contextlib.contextmanager
def programs(name, *first):
    """Programs of tests/support: yields what starts one with `first` and other arguments; they end with the block."""
    started = []

    def start(*arguments, first=first):
        command = [sys.executable, str(ROOT / "tests" / "support" / name), *map(str, (*first, *arguments))]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.kill()
            each.communicate()


@contextlib.contextmanager
def wire_nodes(make_wire, folder):
    """Nodes over scripted answers: yields what starts one on a wire, with an engine and settings for each camera."""
    running = []

    def serve(cameras, **settings):
        nodes = {}
        for number, (topic, answers) in enumerate(cameras.items()):
            (folder / str(number)).mkdir()
            nodes[topic] = VlmNode(engine(folder / str(number), *answers)[0], NodeSettings(**settings))
        wire = make_wire()
        node = WireNode(wire, nodes)
        thread = threading.Thread(target=node.run)
        thread.start()
        running.append((wire, node, thread))
        return nodes

    try:
        yield serve
    finally:
        for wire, node, thread in running:
            node.close()
            thread.join(PATIENCE_S)
            wire.close()
            assert not thread.is_alive()


def heard(program):
    """The next line that a program prints; fields without the underscore that they end with on DDS."""

    def plain(value):
        if isinstance(value, dict):
            return {name.rstrip("_"): plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    impatient = threading.Timer(PATIENCE_S, program.kill)
    impatient.start()
    line = program.stdout.readline()
    impatient.cancel()
    assert line, "the program ended, or said nothing for too long"
    return plain(json.loads(line))


def detections_of_a_camera(robot, serve, count=1):
    """What is heard, `count` times, of the detections in a camera's picture; checks stamp, frame, box and label."""
    serve({CAMERA: [BOXED] * MANY}, prompt="Where?", max_rate_hz=20.0)
    robot("camera", CAMERA[1:], *PICTURE)
    echo = robot("echo", "qwenvl/detections", "Detection2DArray")
    told = [heard(echo) for _ in range(count)]
    array = told[0]["message"]
    assert array["header"]["frame_id"] == f"{CAMERA[1:]}_frame" and array["header"]["stamp"]["sec"] > 1_700_000_000
    (detection,) = array["detections"]
    assert detection["header"] == array["header"]
    assert (detection["bbox"]["size_x"], detection["bbox"]["size_y"]) == (10.0, 5.0)
    assert detection["results"][0]["hypothesis"] == {"class_id": "dots", "score": 1.0}
    return told


def an_answer_waits_for_a_late_subscriber(robot, serve):
    """The answer is given before anybody listens; who subscribes then gets the last one."""
    nodes = serve({CAMERA: ["red<|im_end|>"] * MANY})
    robot("camera", CAMERA[1:], *PICTURE)
    asking = robot("ask", "qwenvl/prompt", "Which colour?")
    until(lambda: nodes[CAMERA].status.answered)
    asking.kill()
    assert heard(robot("echo", "qwenvl/response", "String"))["message"] == {"data": "red"}


def cameras_have_topics_of_their_own(robot, serve):
    """Each has its own topics, and its own newest picture."""
    sides = ("left", "right")
    serve({f"/{side}": [f"{side}<|im_end|>"] * MANY for side in sides}, prompt="What?", max_rate_hz=10.0)
    for side in sides:
        robot("camera", side, *PICTURE)
    echoes = {side: robot("echo", f"qwenvl/{side}/response", "String") for side in sides}
    for side, echo in echoes.items():
        assert heard(echo)["message"]["data"] == side


def parameters_change(robot, serve):
    """A parameter changes while the node runs, one out of its range changes nothing; returns what was told first."""
    nodes = serve({CAMERA: ["red<|im_end|>"] * MANY}, prompt="What?", max_rate_hz=10.0)
    told = heard(robot("set", "qwenvl", "prompt", '"Where is the mug?"'))
    assert told["results"] == [{"successful": True, "reason": ""}]
    assert nodes[CAMERA].settings == NodeSettings(prompt="Where is the mug?", max_rate_hz=10.0)
    (refused,) = heard(robot("set", "qwenvl", "max_rate_hz", "-1.0"))["results"]
    assert not refused["successful"] and "greater than 0" in refused["reason"]
    assert nodes[CAMERA].settings.max_rate_hz == 10.0
    return told
