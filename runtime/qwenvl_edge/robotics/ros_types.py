"""ROS 2 messages without ROS: their types, blank messages and CDR, by the package rosbags (the extra "replay")."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics import ros_services

VISION = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
}
"""Fields of vision_msgs 4, which Humble and all later distributions have."""

FOXGLOVE = {
    "Point2": "float64 x\nfloat64 y",
    "Color": "float64 r\nfloat64 g\nfloat64 b\nfloat64 a",
    "CircleAnnotation": "builtin_interfaces/Time timestamp\nfoxglove_msgs/Point2 position\nfloat64 diameter\n"
    "float64 thickness\nfoxglove_msgs/Color fill_color\nfoxglove_msgs/Color outline_color",
    "PointsAnnotation": "builtin_interfaces/Time timestamp\nuint8 type\nfoxglove_msgs/Point2[] points\n"
    "foxglove_msgs/Color outline_color\nfoxglove_msgs/Color[] outline_colors\nfoxglove_msgs/Color fill_color\n"
    "float64 thickness",
    "TextAnnotation": "builtin_interfaces/Time timestamp\nfoxglove_msgs/Point2 position\nstring text\n"
    "float64 font_size\nfoxglove_msgs/Color text_color\nfoxglove_msgs/Color background_color",
    "ImageAnnotations": "foxglove_msgs/CircleAnnotation[] circles\nfoxglove_msgs/PointsAnnotation[] points\n"
    "foxglove_msgs/TextAnnotation[] texts",
    "CompressedImage": "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format",
    "RawImage": "builtin_interfaces/Time timestamp\nstring frame_id\nuint32 width\nuint32 height\nstring encoding\n"
    "uint32 step\nuint8[] data",
}
"""Fields of Foxglove's messages that every version of them has."""

LINE_LOOP = 2
"""PointsAnnotation's type of a closed outline."""

_NUMBERS = {"bool": False, "string": "", "float32": 0.0, "float64": 0.0}  # all others are whole
_NODE_BASE, _NODE_NAME, _NODE_ARRAY = 1, 2, 3


@functools.cache
def typestore() -> Any:
    """Return a rosbags typestore of ROS 2's common messages, vision_msgs, Foxglove's and the services of parameters.

    Raises:
        QwenVLError: rosbags is not installed.
    """
    try:
        from rosbags.interfaces import Nodetype
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError:
        raise QwenVLError(
            "ROS messages need rosbags, which is not installed; run: pip install 'qwenvl-edge[replay]'"
        ) from None
    store = get_typestore(Stores.ROS2_HUMBLE)
    kinds: dict[str, Any] = {}
    for package, definitions in (("vision_msgs", VISION), ("foxglove_msgs", FOXGLOVE)):
        for name, text in definitions.items():
            kinds.update(get_types_from_msg(text, f"{package}/msg/{name}"))
    kinds.update(ros_services.definitions(get_types_from_msg, Nodetype))
    store.register(kinds)
    return store


def blank(name: str) -> Any:
    """Return a message of type `name` (vision_msgs/msg/Detection2D) whose fields are zero or empty."""
    store = typestore()
    return store.types[name](**{field: _blank(kind) for field, kind in store.fielddefs[name][1]})


def _blank(kind: Any) -> Any:
    node, of = int(kind[0]), kind[1]
    if node == _NODE_BASE:
        return _NUMBERS.get(of[0], 0)
    if node == _NODE_NAME:
        return blank(of)
    (inner, name), count = of
    count = count if node == _NODE_ARRAY else 0
    if int(inner) == _NODE_BASE and name[0] != "string":
        return np.zeros(count, {"byte": "uint8", "char": "uint8"}.get(name[0], name[0]))
    return [_blank((inner, name)) for _ in range(count)]


def serialize(message: Any) -> bytearray:
    """Return a message as CDR, little-endian, with its encapsulation header."""
    made = typestore().serialize_cdr(message, message.__msgtype__, little_endian=True)
    under = made.obj  # a picture is not copied once more
    return under if isinstance(under, bytearray) and len(under) == len(made) else bytearray(made)


def deserialize(data: bytes, name: str) -> Any:
    """Return the message of type `name` that CDR bytes hold; raises rosbags' SerdeError where they hold none.

    Arrays of numbers are views of the bytes, which nobody can write to.
    """
    return typestore().deserialize_cdr(memoryview(data), name)


def type_hash(name: str) -> str:
    """Return the hash that Iron and later distributions give a type: RIHS01_ and 64 digits."""
    return str(typestore().hash_rihs01(name))


class _Kind:
    """Makes blank messages of one type; its constants are attributes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> Any:
        return blank(self.name)

    def __getattr__(self, constant: str) -> Any:
        return getattr(typestore().types[self.name], constant)


def message_kinds() -> SimpleNamespace:
    """Return what `ros_messages` makes messages of, as rclpy's classes."""
    names = [f"vision_msgs/msg/{name}" for name in VISION] + ["foxglove_msgs/msg/ImageAnnotations"]
    names += [f"foxglove_msgs/msg/{name}" for name in ("PointsAnnotation", "TextAnnotation", "Point2", "Color")]
    names += ["std_msgs/msg/String", "std_msgs/msg/Header", "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"]
    names += [f"diagnostic_msgs/msg/{name}" for name in ("DiagnosticArray", "DiagnosticStatus", "KeyValue")]
    return SimpleNamespace(**{name.rpartition("/")[2]: _Kind(name) for name in names})
