"""ROS messages of the nodes, whatever makes them: rclpy's classes, or those of `ros_types` where there is no ROS.

`kinds` is a namespace of message classes by their ROS names; each may be called without arguments for a blank message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenvl_edge.families.places import Box
from qwenvl_edge.robotics.images import Pixels, message_to_rgb, raw_to_rgb
from qwenvl_edge.robotics.node import Status


def image_to_rgb(message: Any) -> Pixels:
    """Return an Image or a CompressedImage of sensor_msgs, or Foxglove's RawImage, as RGB [H, W, 3]; raises ImageError.

    Which of them a message is shows in its fields.
    """
    if not hasattr(message, "encoding"):
        return message_to_rgb(message.data, message.format)
    return raw_to_rgb(
        message.data,
        message.encoding,
        message.width,
        message.height,
        row_bytes=message.step,
        is_big_endian=getattr(message, "is_bigendian", False),
    )


def detection_array(kinds: Any, header: Any, boxes: Sequence[Box]) -> Any:
    """Return boxes as a vision_msgs/Detection2DArray with the header of their frame."""
    array = kinds.Detection2DArray()
    array.header = header
    array.detections = [_detection(kinds, header, box) for box in boxes]
    return array


def _detection(kinds: Any, header: Any, box: Box) -> Any:
    """One box as vision_msgs 4 (Humble and newer) has it; the model gives no score, so it is 1."""
    detection = kinds.Detection2D()
    detection.header = header
    detection.bbox.center.position.x = (box.x1 + box.x2) / 2
    detection.bbox.center.position.y = (box.y1 + box.y2) / 2
    detection.bbox.size_x, detection.bbox.size_y = box.x2 - box.x1, box.y2 - box.y1
    hypothesis = kinds.ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = box.label, 1.0
    detection.results = [hypothesis]
    return detection


def diagnostic_array(kinds: Any, name: str, status: Status) -> Any:
    """Return a node's counters as a diagnostic_msgs/DiagnosticArray, without its stamp."""
    figures = {
        "answered": status.answered,
        "failed": status.failed,
        "frames dropped": status.frames_dropped,
        "questions dropped": status.questions_dropped,
        "latency of the last answer, ms": round(status.latency_ms),
    }
    message = kinds.DiagnosticStatus()
    message.level = kinds.DiagnosticStatus.WARN if status.error else kinds.DiagnosticStatus.OK
    message.name, message.message = f"{name}: answers", status.error or "fine"
    message.values = [_key_value(kinds, key, str(value)) for key, value in figures.items()]
    array = kinds.DiagnosticArray()
    array.status = [message]
    return array


def _key_value(kinds: Any, key: str, value: str) -> Any:
    pair = kinds.KeyValue()
    pair.key, pair.value = key, value
    return pair
