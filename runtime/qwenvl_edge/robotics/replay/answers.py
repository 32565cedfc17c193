"""The output of a replay: an MCAP file of ROS 2 messages that Foxglove, PlotJuggler, Rerun and `ros2 bag` open."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from qwenvl_edge import __version__
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.urls import show
from qwenvl_edge.robotics.replay.journal import Entry
from qwenvl_edge.robotics.replay.recordings import Message
from qwenvl_edge.robotics.ros_messages import detection_array
from qwenvl_edge.robotics.ros_types import LINE_LOOP, message_kinds, serialize, type_hash, typestore

TOPICS = {
    "/qwenvl/response": "std_msgs/msg/String",
    "/qwenvl/detections": "vision_msgs/msg/Detection2DArray",
    "/qwenvl/annotations": "foxglove_msgs/msg/ImageAnnotations",
}
"""Topics of the answers and the types of their messages."""

_COLOUR = (0.1, 0.9, 0.3, 1.0)
_SHADE = (0.0, 0.0, 0.0, 0.6)
_FONT = 14.0  # pixels
_LINE = 2.0
_POINT = 8.0


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the name `path` when the block has ended without an error.

    Raises:
        QwenVLError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise QwenVLError(f"cannot write {show(str(path))}: {error.strerror or error}.") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class AnswerFile:
    """Writes answers into an open MCAP file; the same entries give the same bytes.

    Args:
        stream: a binary file.
        about: what the answers are about, for the file's metadata.
    """

    def __init__(self, stream: IO[bytes], about: Mapping[str, str]) -> None:
        from mcap.writer import Writer

        self._writer: Any = Writer(stream)
        self._writer.start(profile="ros2", library=f"qwenvl-edge {__version__}")
        self._kinds: SimpleNamespace = message_kinds()
        self._count = 0
        self._frames: dict[tuple[str, str], int] = {}
        self._channels = {topic: self._channel(topic, kind) for topic, kind in TOPICS.items()}
        self._writer.add_metadata("qwenvl", dict(about))

    def _channel(self, topic: str, kind: str) -> int:
        schema = self._writer.register_schema(
            kind, "ros2msg", typestore().generate_msgdef(kind, ros_version=2)[0].encode()
        )
        qos = {"offered_qos_profiles": "", "topic_type_hash": type_hash(kind)}  # as rosbag2 writes it
        return int(self._writer.register_channel(topic, "cdr", schema, metadata=qos))

    def add(self, entry: Entry) -> None:
        """Write an answer: its text, its boxes, and all its places as annotations."""
        kinds = self._kinds
        header = kinds.Header()
        header.stamp.sec, header.stamp.nanosec = entry.stamp
        header.frame_id = entry.frame_id
        text = kinds.String()
        text.data = entry.text
        messages = (text, detection_array(kinds, header, entry.boxes), image_annotations(kinds, header.stamp, entry))
        for topic, message in zip(TOPICS, messages, strict=True):
            self._write(self._channels[topic], entry.log_ns, bytes(serialize(message)))

    def add_frame(self, topic: str, message: Message) -> None:
        """Write a recorded frame as it is."""
        form = message.form
        if (topic, form.kind) not in self._frames:
            language, definition = form.language, form.definition
            if not definition:
                language, definition = "ros2msg", typestore().generate_msgdef(form.kind, ros_version=2)[0].encode()
            schema = self._writer.register_schema(form.kind, language, definition)
            self._frames[topic, form.kind] = self._writer.register_channel(topic, form.encoding, schema)
        self._write(self._frames[topic, form.kind], message.log_ns, message.data)

    def _write(self, channel: int, log_ns: int, data: bytes) -> None:
        self._writer.add_message(channel, log_time=log_ns, publish_time=log_ns, sequence=self._count, data=data)
        self._count += 1

    def finish(self) -> None:
        """Write the end of the file."""
        self._writer.finish()


def image_annotations(kinds: Any, stamp: Any, entry: Entry) -> Any:
    """Return an answer's places as foxglove.ImageAnnotations: outlines, points, and a label at each."""
    message = kinds.ImageAnnotations()
    outline = functools.partial(_outline, kinds, stamp)
    label = functools.partial(_label, kinds, stamp)
    for box in entry.boxes:
        message.points.append(outline([(box.x1, box.y1), (box.x2, box.y1), (box.x2, box.y2), (box.x1, box.y2)]))
        message.texts.append(label(box.label, box.x1, box.y1))
    for quad in entry.quads:
        message.points.append(outline(quad.points))
        message.texts.append(label(quad.label, *quad.points[0]))
    for point in entry.points:
        half = _POINT / 2
        diamond = [
            (point.x, point.y - half),
            (point.x + half, point.y),
            (point.x, point.y + half),
            (point.x - half, point.y),
        ]
        message.points.append(outline(diamond))
        message.texts.append(label(point.label, point.x, point.y))
    message.texts = [text for text in message.texts if text.text]
    return message


def _outline(kinds: Any, stamp: Any, corners: Sequence[tuple[float, float]]) -> Any:
    shape = kinds.PointsAnnotation()
    shape.timestamp, shape.type, shape.thickness = stamp, LINE_LOOP, _LINE
    shape.points = [_point(kinds, *corner) for corner in corners]
    shape.outline_color = _colour(kinds, _COLOUR)
    return shape


def _label(kinds: Any, stamp: Any, words: str, x: float, y: float) -> Any:
    text = kinds.TextAnnotation()
    text.timestamp, text.text, text.font_size = stamp, words, _FONT
    text.position = _point(kinds, x, y)
    text.text_color, text.background_color = _colour(kinds, _COLOUR), _colour(kinds, _SHADE)
    return text


def _point(kinds: Any, x: float, y: float) -> Any:
    point = kinds.Point2()
    point.x, point.y = float(x), float(y)
    return point


def _colour(kinds: Any, rgba: tuple[float, float, float, float]) -> Any:
    colour = kinds.Color()
    colour.r, colour.g, colour.b, colour.a = rgba
    return colour
