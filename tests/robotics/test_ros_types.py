"""ROS messages as CDR: pictures are large, so their pixels are moved as seldom as can be."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags")

from qwenvl_edge.robotics.ros_messages import image_to_rgb
from qwenvl_edge.robotics.ros_types import deserialize, message_kinds, serialize

IMAGE = "sensor_msgs/msg/Image"


def picture() -> object:
    message = message_kinds().Image()
    message.width, message.height, message.step, message.encoding = 5, 4, 15, "rgb8"
    message.data = np.arange(60, dtype=np.uint8)
    return message


def test_a_picture_comes_back_from_its_bytes():
    found = deserialize(bytes(serialize(picture())), IMAGE)
    assert (found.width, found.height, found.encoding) == (5, 4, "rgb8")
    assert image_to_rgb(found).tolist() == np.arange(60).reshape(4, 5, 3).tolist()


def test_its_pixels_are_those_of_the_bytes_and_cannot_be_written():
    data = bytes(serialize(picture()))
    pixels = deserialize(data, IMAGE).data
    assert np.shares_memory(pixels, np.frombuffer(data, np.uint8))
    assert not pixels.flags.writeable


def test_what_is_sent_is_made_once(monkeypatch):
    from qwenvl_edge.robotics import ros_types

    made = []
    original = ros_types.typestore().serialize_cdr
    monkeypatch.setattr(
        ros_types.typestore(), "serialize_cdr", lambda *a, **k: made.append(original(*a, **k)) or made[-1]
    )
    assert serialize(picture()) is made[0].obj
