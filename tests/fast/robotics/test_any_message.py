"""Whatever a message holds, a node logs it and goes on: found by a generator."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_edge.robotics.dora import DoraNode
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.node import VlmNode
from qwenvl_edge.robotics.ros2 import RosNode, import_ros
from qwenvl_edge.robotics.zenoh import ZenohNode
from support import ros_stand_in as ros
from support.scripted import engine

NOW = datetime(2024, 1, 1, tzinfo=timezone.utc)
ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 2**31, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.lists(st.integers(-1, 300), max_size=20),
    st.builds(object),
    st.sampled_from(["rgb8", "nv12", "yuv422", "bayer_rggb8", "mono16", "16UC1", "jpeg", "\ud800"]),
    st.sampled_from([np.zeros(12, np.uint8), np.zeros(12), np.array([None]), np.array(["a"])]),
)
SETTINGS = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Value:
    """An Arrow array; its methods return anything, or raise as Arrow does."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def to_numpy(self, zero_copy_only: bool = True) -> Any:
        return self._give()

    def to_pylist(self) -> Any:
        return self._give()

    def to_bytes(self) -> Any:
        return self._give()

    def _give(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


VALUES = st.builds(Value, ANY | st.builds(ValueError, st.text(max_size=9)) | st.builds(RuntimeError))


@pytest.fixture
def vlm(tmp_path):
    qwen, _ = engine(tmp_path, *["fine<|im_end|>"] * 3)
    return VlmNode(qwen)


@pytest.fixture(autouse=True)
def every_line(monkeypatch):
    monkeypatch.setattr(Messages, "REPEAT_S", 0.0)


@pytest.fixture
def parts(monkeypatch):
    """What the node uses of ROS."""
    for name, module in ros.modules(ros.Node(), lambda: None).items():
        monkeypatch.setitem(sys.modules, name, module)
    return import_ros()


def test_an_input_of_a_name_that_breaks_lines(vlm):
    lines: list[str] = []
    DoraNode(SimpleNamespace(log_error=lines.append), vlm)._receive(
        {"type": "INPUT", "id": "a\n\x1b" * 400, "metadata": {}}
    )
    assert len(lines) == 1 and lines[0].startswith(r"input a\n\x1ba\n") and len(lines[0]) == 500


@SETTINGS
@given(st.data())
def test_dora(vlm, data):
    lines: list[str] = []
    stamps = st.just(NOW) | ANY
    metadata = data.draw(
        st.fixed_dictionaries({}, optional={"encoding": ANY, "width": ANY, "height": ANY, "timestamp": stamps}) | ANY
    )
    event = {"type": "INPUT", "id": data.draw(st.sampled_from(["image", "text"]) | ANY), "metadata": metadata}
    event["value"] = data.draw(VALUES | ANY)
    for key in data.draw(st.lists(st.sampled_from(["id", "metadata", "value"]), max_size=1)):
        del event[key]
    dora = SimpleNamespace(log_error=lines.append, timestamp=lambda: NOW + timedelta(seconds=1))
    DoraNode(dora, vlm)._receive(event)
    assert all(line.isprintable() and len(line) <= 500 for line in lines)


@SETTINGS
@given(st.data())
def test_ros(vlm, parts, data):
    ros_node = ros.Node()
    connected = RosNode(ros_node, parts, vlm)
    header = data.draw(st.builds(ros.Header) | ANY)
    fields = {"header": header, "height": data.draw(ANY), "width": data.draw(ANY), "encoding": data.draw(ANY)}
    image = ros.Image(**fields, is_bigendian=data.draw(ANY), step=data.draw(ANY), data=data.draw(ANY))
    packed = ros.CompressedImage(header=header, format=data.draw(ANY), data=data.draw(ANY))
    for message in (image, packed, data.draw(ANY)):
        connected._take_image(message)
    connected._take_prompt(data.draw(st.builds(ros.String, data=ANY) | ANY))
    assert all(line.isprintable() and len(line) <= 500 for line in ros_node.warnings)


@SETTINGS
@given(payload=VALUES | ANY, attachment=VALUES | ANY)
def test_zenoh(vlm, payload, attachment, capsys):
    node = ZenohNode.__new__(ZenohNode)
    node._vlm, node._json, node._messages = vlm, "json", Messages(lambda line: None)
    node._take_frame(SimpleNamespace(key_expr="camera", payload=payload))
    answers: list[Any] = []
    query = SimpleNamespace(payload=payload, attachment=attachment, key_expr="ask")
    query.reply, query.reply_err = (
        lambda key, text, encoding: answers.append(text),
        lambda text, encoding: answers.append(text),
    )
    with node._messages.passing_over("query"):
        node._answer(query)
    assert len(answers) == 1


def test_the_same_line_is_logged_once_in_a_while(monkeypatch):
    monkeypatch.setattr(Messages, "REPEAT_S", 60.0)
    lines: list[str] = []
    messages = Messages(lines.append)
    for _ in range(5):
        with messages.passing_over("image"):
            raise ValueError("a\nb")
    with messages.passing_over("prompt"):
        raise ValueError
    assert lines == [
        "image: it cannot be used: ValueError: a b.",
        "prompt: it cannot be used: ValueError: no reason given.",
    ]
