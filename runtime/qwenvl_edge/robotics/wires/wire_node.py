"""A node on a wire of ROS 2 without ROS, and the common part of its commands.

Subscribes pictures (sensor_msgs/Image or CompressedImage; best effort, the newest only) and NAME/prompt
(std_msgs/String). Publishes for every answer NAME/response (std_msgs/String) and NAME/detections
(vision_msgs/Detection2DArray, with the picture's header), and /diagnostics once a second. With several cameras the
answers about each are under NAME and the camera's topic. Its parameters change by ROS's services.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable

from qwenvl_edge.machine.terminal import say
from qwenvl_edge.robotics.command import add_prompt_options, node_parser, open_engine, read_settings
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.node import NodeAnswer, NodeSettings, VlmNode
from qwenvl_edge.robotics.ros_messages import detection_array, diagnostic_array, image_to_rgb
from qwenvl_edge.robotics.ros_services import PARAMETER_SERVICES, request
from qwenvl_edge.robotics.ros_types import deserialize, message_kinds, serialize
from qwenvl_edge.robotics.wires.parameters import Parameters
from qwenvl_edge.robotics.wires.wire import EVENTS, KEPT, RELIABLE, SENSOR, Wire

_STRING, _DETECTIONS = "std_msgs/msg/String", "vision_msgs/msg/Detection2DArray"
_DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
_DIAGNOSTICS_S = 1.0
_NS = 10**9
_SERVICES = {
    "DescribeParameters": "describe_parameters",
    "GetParameters": "get_parameters",
    "GetParameterTypes": "get_parameter_types",
    "ListParameters": "list_parameters",
    "SetParameters": "set_parameters",
    "SetParametersAtomically": "set_parameters_atomically",
}


class _CameraTopics:
    """One camera: its reader, the node that answers about it, and the writers of its answers."""

    def __init__(self, wire: Wire, vlm: VlmNode, topic: str, namespace: str, *, compressed: bool) -> None:
        self.vlm = vlm
        self.topic = topic
        self.kind = f"sensor_msgs/msg/{'CompressedImage' if compressed else 'Image'}"
        self.images = wire.reader(topic, self.kind, SENSOR)
        self.response = wire.writer(f"{namespace}/response", _STRING, KEPT)
        self.detections = wire.writer(f"{namespace}/detections", _DETECTIONS, KEPT)


class WireNode:
    """Answers about cameras; `run` reads, and a thread for each camera answers.

    Args:
        wire: the way to other nodes.
        cameras: a VlmNode for each topic of pictures, all with the same settings.
        name: the node's absolute name, and the namespace of its topics.
        compressed: whether the pictures are CompressedImage.
    """

    def __init__(
        self, wire: Wire, cameras: dict[str, VlmNode], name: str = "/qwenvl", *, compressed: bool = False
    ) -> None:
        self._wire = wire
        self._name = name
        self._kinds = message_kinds()
        self._messages = Messages(lambda line: say(line, to=sys.stderr))
        self._prompts = wire.reader(f"{name}/prompt", _STRING, RELIABLE)
        self._diagnostics = wire.writer("/diagnostics", _DIAGNOSTICS, RELIABLE)
        self._cameras = [
            _CameraTopics(
                wire, vlm, topic, name if len(cameras) == 1 else f"{name}/{topic.strip('/')}", compressed=compressed
            )
            for topic, vlm in cameras.items()
        ]
        self._events = wire.writer("/parameter_events", "rcl_interfaces/msg/ParameterEvent", EVENTS)
        settings = next(iter(cameras.values())).settings
        self._parameters = Parameters(name, settings, self._change, lambda event: wire.write(self._events, event))
        self._services = {
            service: wire.service(f"{name}/{_SERVICES[service]}", kind) for service, kind in PARAMETER_SERVICES.items()
        }
        self._closed = threading.Event()

    def run(self) -> None:
        """Answer until `close`."""
        workers = [threading.Thread(target=self._answer, args=[camera]) for camera in self._cameras]
        for worker in workers:
            worker.start()
        due = time.monotonic() + _DIAGNOSTICS_S
        try:
            while not self._closed.is_set():
                self._wire.wait(max(due - time.monotonic(), 0.0))
                for camera in self._cameras:
                    self._take_images(camera)
                self._take_prompts()
                self._take_requests()
                if time.monotonic() >= due:
                    due = time.monotonic() + _DIAGNOSTICS_S
                    with self._messages.passing_over("diagnostics"):
                        self._diagnose()
        finally:
            for camera in self._cameras:
                camera.vlm.close()
            for worker in workers:
                worker.join()

    def close(self) -> None:
        """End `run` and the answers under way; may be called from any thread."""
        self._closed.set()
        self._wire.wake()

    def _take_images(self, camera: _CameraTopics) -> None:
        for data in self._wire.take(camera.images)[-1:]:
            with self._messages.passing_over(camera.topic):
                image = deserialize(data, camera.kind)
                stamp = image.header.stamp
                captured_ns = stamp.sec * _NS + stamp.nanosec
                age_s = (time.time_ns() - captured_ns) / _NS if captured_ns else 0.0
                camera.vlm.put_frame(image_to_rgb(image), age_s=age_s, header=image.header)

    def _take_prompts(self) -> None:
        for data in self._wire.take(self._prompts):
            for camera in self._cameras:
                with self._messages.passing_over("prompt"):
                    camera.vlm.put_question(deserialize(data, _STRING).data)

    def _take_requests(self) -> None:
        for service, offered in self._services.items():
            for asked in self._wire.requests(offered):
                with self._messages.passing_over(_SERVICES[service]):
                    message = deserialize(asked.data, request(PARAMETER_SERVICES[service]))
                    asked.answer(bytes(serialize(self._parameters.answer(service, message))))

    def _change(self, settings: NodeSettings) -> None:
        for camera in self._cameras:
            camera.vlm.change(settings)

    def _answer(self, camera: _CameraTopics) -> None:
        def send(answer: NodeAnswer) -> None:
            text = self._kinds.String()
            text.data = answer.reply.text
            self._wire.write(camera.response, text)
            array = detection_array(self._kinds, answer.frame.header, answer.reply.boxes)
            self._wire.write(camera.detections, array)

        camera.vlm.run(send, lambda error: self._messages.log(f"{camera.topic}: {error}"))

    def _diagnose(self) -> None:
        for camera in self._cameras:
            name = self._name.strip("/") + ("" if len(self._cameras) == 1 else f" {camera.topic}")
            array = diagnostic_array(self._kinds, name, camera.vlm.status)
            array.header.stamp.sec, array.header.stamp.nanosec = divmod(time.time_ns(), _NS)
            self._wire.write(self._diagnostics, array)


def wire_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that the nodes on all wires have."""
    parser = node_parser(program, description)
    add_prompt_options(parser)
    parser.add_argument(
        "--image", action="append", default=[], metavar="TOPIC", help="pictures; repeatable (default /camera/image_raw)"
    )
    parser.add_argument("--compressed", action="store_true", help="the pictures are sensor_msgs/CompressedImage")
    parser.add_argument("--name", default="/qwenvl", metavar="NAME", help="the node; its topics are below (/qwenvl)")
    parser.add_argument("--domain", type=int, default=0, metavar="N", help="ROS_DOMAIN_ID (0)")
    return parser


def absolute_name(arguments: argparse.Namespace) -> str:
    """Return the node's absolute name, of the option --name."""
    return f"/{arguments.name.strip('/')}"


def run_node(arguments: argparse.Namespace, open_wire: Callable[[], Wire]) -> None:
    """Open a wire and the engine, and answer until interrupted."""
    with contextlib.closing(open_wire()) as wire:
        topics = arguments.image or ["/camera/image_raw"]
        settings = read_settings(arguments)
        engine = open_engine(arguments)
        cameras = {topic: VlmNode(engine, settings) for topic in topics}
        node = WireNode(wire, cameras, absolute_name(arguments), compressed=arguments.compressed)
        say(f"answering about {', '.join(topics)} in domain {arguments.domain}")
        with contextlib.closing(node):
            node.run()
