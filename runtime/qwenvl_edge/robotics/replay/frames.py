"""Messages of a recording -> frames: sensor_msgs' and Foxglove's pictures, in CDR, ROS 1's form, protobuf or JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from qwenvl_edge.errors import ImageError
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.machine.urls import show
from qwenvl_edge.robotics.replay.recordings import Form, Message, Recording, RecordingError, Topic
from qwenvl_edge.robotics.ros_messages import image_to_rgb
from qwenvl_edge.robotics.ros_types import FOXGLOVE, typestore

_KINDS = {
    **{f"sensor_msgs/{name}": f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage")},
    **{f"sensor_msgs/msg/{name}": f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage")},
    **{
        f"{package}{name}": f"foxglove_msgs/msg/{name}"
        for package in ("foxglove.", "foxglove_msgs/", "foxglove_msgs/msg/")
        for name in ("RawImage", "CompressedImage")
    },
}
"""Names of the types that are frames -> ROS's name of them."""

_MOST_NAMED = 8  # topics in an error


@dataclass(frozen=True)
class RecordedFrame:
    """A frame of a recording.

    picture: RGB. stamp: seconds and nanoseconds of the capture, as its header has them. frame_id: the header's.
    log_ns: when it was logged.
    """

    picture: Picture = field(repr=False)
    stamp: tuple[int, int]
    frame_id: str
    log_ns: int


def choose_topic(recording: Recording, name: str | None) -> Topic:
    """Return the topic of that name, or the only one with frames if none is named.

    Raises:
        RecordingError: there is no such topic, it has no frames, or several have some and none is named.
    """
    with_frames = [each for each in recording.topics.values() if any(kind in _KINDS for kind in each.kinds)]
    offered = ", ".join(each.name for each in with_frames[:_MOST_NAMED]) or "none"
    if name is None:
        if len(with_frames) == 1:
            return with_frames[0]
        where = show(str(recording.path))
        if not with_frames:
            raise RecordingError(f"{where} has no topic with pictures; record sensor_msgs/Image or CompressedImage.")
        raise RecordingError(
            f"{where} has {len(with_frames)} topics with pictures ({offered}); choose one with --topic."
        )
    topic = recording.topics.get(name)
    if topic is None:
        raise RecordingError(
            f"{show(str(recording.path))} has no topic {show(name)}; its topics with pictures: {offered}."
        )
    if topic not in with_frames:
        raise RecordingError(
            f"the topic {show(name)} has {' and '.join(topic.kinds) or 'untyped messages'}, no pictures; topics with "
            f"pictures: {offered}."
        )
    if not topic.count:
        raise RecordingError(f"the topic {show(name)} has no messages in {show(str(recording.path))}.")
    return topic


class FrameReader:
    """Decodes messages, each form by a decoder that is made once."""

    def __init__(self) -> None:
        self._decoders: dict[Form, Callable[[bytes], Any]] = {}

    def read(self, message: Message) -> RecordedFrame:
        """Return the frame that a message holds.

        Raises:
            ImageError: it holds none that can be read.
        """
        try:
            if message.form not in self._decoders:
                self._decoders[message.form] = _decoder(message.form)
            decoded = self._decoders[message.form](message.data)
            stamp, frame_id = _header(decoded)
        except ImageError:
            raise
        except Exception as error:  # a damaged message makes the decoders raise whatever there is
            reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            raise ImageError(f"the message cannot be decoded as {message.form.kind}: {reason}.") from None
        return RecordedFrame(load_picture(image_to_rgb(decoded), name="frame"), stamp, frame_id, message.log_ns)


def _header(message: Any) -> tuple[tuple[int, int], str]:
    """The stamp and the frame id; ROS, protobuf and Foxglove's JSON name the parts of a time differently."""
    header = getattr(message, "header", None)
    time = message.timestamp if header is None else header.stamp
    frame_id = message.frame_id if header is None else header.frame_id
    seconds = time.sec if hasattr(time, "sec") else time.seconds
    rest = next(getattr(time, name) for name in ("nanosec", "nanos", "nsec") if hasattr(time, name))
    return (int(seconds), int(rest)), str(frame_id)


def _decoder(form: Form) -> Callable[[bytes], Any]:
    if form.kind not in _KINDS:
        raise ImageError(f"a message of the topic is of type {form.kind or 'unknown'}, which is no picture.")
    makers = {"cdr": _ros_decoder, "ros1": _ros_decoder, "protobuf": _protobuf_decoder, "json": _json_decoder}
    if form.encoding not in makers:
        raise ImageError(
            f"the messages are encoded as {show(form.encoding)}; record them as {', '.join(makers)}, or convert them."
        )
    return makers[form.encoding](form)


def _ros_decoder(form: Form) -> Callable[[bytes], Any]:
    """Decode CDR or ROS 1's form by the definition that the recording has; bags before Iron have none."""
    from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

    name = _KINDS[form.kind]
    store = typestore()
    if form.definition or form.encoding == "ros1":
        store = get_typestore(Stores.EMPTY if form.definition else Stores.ROS1_NOETIC)
    if form.definition:
        text = form.definition.decode()
        if form.language == "ros2idl":
            parts = [each.partition("\n")[2] for each in text.split("=" * 80 + "\n") if each.startswith("IDL: ")]
            for part in parts or [text]:
                store.register(get_types_from_idl(part))
        else:
            store.register(get_types_from_msg(text, name))
    if form.encoding == "ros1":
        return lambda data: store.deserialize_ros1(data, name)
    return lambda data: store.deserialize_cdr(data, name)


def _protobuf_decoder(form: Form) -> Callable[[bytes], Any]:
    from mcap.records import Schema
    from mcap_protobuf.decoder import DecoderFactory

    schema = Schema(id=1, name=form.kind, encoding=form.language, data=form.definition)
    decode: Callable[[bytes], Any] | None = DecoderFactory().decoder_for("protobuf", schema)
    if decode is None:
        raise RecordingError(f"the definition of {form.kind} is {show(form.language)}, not protobuf.")
    return decode


def _json_decoder(form: Form) -> Callable[[bytes], Any]:
    """Decode Foxglove's JSON: bytes are base64, and times {sec, nsec}."""
    fields = [line.split()[1] for line in FOXGLOVE[_KINDS[form.kind].rpartition("/")[2]].split("\n")]

    def decode(data: bytes) -> Any:
        message = json.loads(data)
        values = {name: message[name] for name in fields}
        values["timestamp"] = SimpleNamespace(**values["timestamp"])
        values["data"] = base64.b64decode(values["data"], validate=True)
        return SimpleNamespace(**values)

    return decode
