"""A node on ROS 2's wire without ROS: `python -m qwenvl_edge.robotics.dds BUNDLE --image /camera/image_raw`.

A robot's nodes on Cyclone DDS or Fast DDS see ordinary topics. Subscribes pictures (sensor_msgs/Image, or
CompressedImage with --compressed; best effort, the newest only) and NAME/prompt (std_msgs/String). Publishes for every
answer NAME/response (std_msgs/String) and NAME/detections (vision_msgs/Detection2DArray, with the picture's header),
and /diagnostics once a second. With several cameras the answers about each are under NAME and the camera's topic.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say
from qwenvl_edge.robotics.command import add_prompt_options, node_parser, open_engine, read_settings, run_command
from qwenvl_edge.robotics.dds_types import (
    hashed,
    import_cyclonedds,
    reliable_qos,
    sample,
    sensor_qos,
    topic_name,
    wire_type,
)
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.node import NodeAnswer, VlmNode
from qwenvl_edge.robotics.ros_messages import detection_array, diagnostic_array, image_to_rgb
from qwenvl_edge.robotics.ros_types import deserialize, message_kinds, serialize

_STRING, _DETECTIONS = "std_msgs/msg/String", "vision_msgs/msg/Detection2DArray"
_DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
_DIAGNOSTICS_S = 1.0
_TAKEN = 16  # messages at once
_NS = 10**9


class Participant:
    """A DDS participant that reads and writes ROS messages. domain: ROS_DOMAIN_ID.

    Raises:
        QwenVLError: cyclonedds is not installed, or cannot start.
    """

    def __init__(self, domain: int = 0) -> None:
        self._dds = import_cyclonedds()
        try:
            self._participant = self._dds.domain.DomainParticipant(domain)
        except self._dds.core.DDSException as error:
            reason = " ".join(str(error).split())
            raise QwenVLError(f"DDS cannot start: {reason}; look at CYCLONEDDS_URI and the network.") from None
        self._waiting = self._dds.core.WaitSet(self._participant)
        self._wake = self._dds.core.GuardCondition(self._participant)
        self._waiting.attach(self._wake)
        self._conditions: list[Any] = []
        self._topics: dict[str, Any] = {}

    def reader(self, topic: str, kind: str, qos: Any) -> Any:
        """Subscribe a ROS topic; `take` gives its messages."""
        core = self._dds.core
        reader = self._dds.sub.DataReader(self._participant, self._topic(topic, kind), qos=hashed(qos, kind))
        any_state = core.SampleState.Any | core.ViewState.Any | core.InstanceState.Any
        condition = core.ReadCondition(reader, any_state)
        self._waiting.attach(condition)
        self._conditions.append(condition)  # which would end with its last reference
        return reader

    def writer(self, topic: str, kind: str, qos: Any) -> Any:
        """Offer a ROS topic; `write` sends messages."""
        return self._dds.pub.DataWriter(self._participant, self._topic(topic, kind), qos=hashed(qos, kind))

    def _topic(self, name: str, kind: str) -> Any:
        if name not in self._topics:
            self._topics[name] = self._dds.topic.Topic(self._participant, topic_name(name), wire_type(kind))
        return self._topics[name]

    def wait(self, seconds: float) -> None:
        """Wait until a message or `wake` comes."""
        self._waiting.wait(round(seconds * _NS))

    def wake(self) -> None:
        """End `wait`, now and from then on."""
        self._wake.set(True)

    def take(self, reader: Any) -> list[bytes]:
        """Return the messages that have come, as CDR."""
        return [each.data for each in reader.take(_TAKEN) if hasattr(each, "data")]

    @staticmethod
    def write(writer: Any, message: Any) -> None:
        """Send a message of `ros_types`."""
        writer.write(sample(message.__msgtype__, serialize(message)))


class _CameraTopics:
    """One camera: its reader, the node that answers about it, and the writers of its answers."""

    def __init__(self, participant: Participant, vlm: VlmNode, topic: str, namespace: str, *, compressed: bool) -> None:
        self.vlm = vlm
        self.topic = topic
        self.kind = f"sensor_msgs/msg/{'CompressedImage' if compressed else 'Image'}"
        self.images = participant.reader(topic, self.kind, sensor_qos())
        kept = reliable_qos(keep=True)
        self.response = participant.writer(f"{namespace}/response", _STRING, kept)
        self.detections = participant.writer(f"{namespace}/detections", _DETECTIONS, kept)


class DdsNode:
    """Answers about cameras on DDS; `run` reads, and a thread for each camera answers.

    Args:
        participant: the way to DDS.
        cameras: a VlmNode for each topic of pictures.
        name: the namespace of the other topics.
        compressed: whether the pictures are CompressedImage.
    """

    def __init__(
        self, participant: Participant, cameras: dict[str, VlmNode], name: str = "/qwenvl", *, compressed: bool = False
    ) -> None:
        self._participant = participant
        self._name = name
        self._kinds = message_kinds()
        self._messages = Messages(lambda line: say(line, to=sys.stderr))
        self._prompts = participant.reader(f"{name}/prompt", _STRING, reliable_qos())
        self._diagnostics = participant.writer("/diagnostics", _DIAGNOSTICS, reliable_qos())
        self._cameras = [
            _CameraTopics(
                participant,
                vlm,
                topic,
                name if len(cameras) == 1 else f"{name}/{topic.strip('/')}",
                compressed=compressed,
            )
            for topic, vlm in cameras.items()
        ]
        self._closed = threading.Event()

    def run(self) -> None:
        """Answer until `close`."""
        workers = [threading.Thread(target=self._answer, args=[camera]) for camera in self._cameras]
        for worker in workers:
            worker.start()
        due = time.monotonic() + _DIAGNOSTICS_S
        try:
            while not self._closed.is_set():
                self._participant.wait(max(due - time.monotonic(), 0.0))
                for camera in self._cameras:
                    self._take_images(camera)
                self._take_prompts()
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
        self._participant.wake()

    def _take_images(self, camera: _CameraTopics) -> None:
        for data in self._participant.take(camera.images)[-1:]:
            with self._messages.passing_over(camera.topic):
                image = deserialize(data, camera.kind)
                stamp = image.header.stamp
                captured_ns = stamp.sec * _NS + stamp.nanosec
                age_s = (time.time_ns() - captured_ns) / _NS if captured_ns else 0.0
                camera.vlm.put_frame(image_to_rgb(image), age_s=age_s, header=image.header)

    def _take_prompts(self) -> None:
        for data in self._participant.take(self._prompts):
            for camera in self._cameras:
                with self._messages.passing_over("prompt"):
                    camera.vlm.put_question(deserialize(data, _STRING).data)

    def _answer(self, camera: _CameraTopics) -> None:
        def send(answer: NodeAnswer) -> None:
            text = self._kinds.String()
            text.data = answer.reply.text
            self._participant.write(camera.response, text)
            array = detection_array(self._kinds, answer.frame.header, answer.reply.boxes)
            self._participant.write(camera.detections, array)

        camera.vlm.run(send, lambda error: self._messages.log(f"{camera.topic}: {error}"))

    def _diagnose(self) -> None:
        for camera in self._cameras:
            name = self._name.strip("/") + ("" if len(self._cameras) == 1 else f" {camera.topic}")
            array = diagnostic_array(self._kinds, name, camera.vlm.status)
            array.header.stamp.sec, array.header.stamp.nanosec = divmod(time.time_ns(), _NS)
            self._participant.write(self._diagnostics, array)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until interrupted; return the exit code."""
    parser = node_parser("qwenvl_edge.robotics.dds", "Qwen-VL as a node on ROS 2's DDS wire.")
    add_prompt_options(parser)
    parser.add_argument(
        "--image", action="append", default=[], metavar="TOPIC", help="pictures; repeatable (default /camera/image_raw)"
    )
    parser.add_argument("--compressed", action="store_true", help="the pictures are sensor_msgs/CompressedImage")
    parser.add_argument("--name", default="/qwenvl", metavar="NAME", help="namespace of the other topics (/qwenvl)")
    parser.add_argument("--domain", type=int, default=0, metavar="N", help="ROS_DOMAIN_ID (0)")
    arguments = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    participant = Participant(arguments.domain)
    topics = arguments.image or ["/camera/image_raw"]
    settings = read_settings(arguments)
    engine = open_engine(arguments)
    cameras = {topic: VlmNode(engine, settings) for topic in topics}
    node = DdsNode(participant, cameras, f"/{arguments.name.strip('/')}", compressed=arguments.compressed)
    say(f"answering about {', '.join(topics)} in domain {arguments.domain}")
    try:
        node.run()
    finally:
        node.close()


if __name__ == "__main__":
    sys.exit(main())
