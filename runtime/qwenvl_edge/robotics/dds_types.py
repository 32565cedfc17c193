"""ROS 2 messages on DDS by Eclipse Cyclone DDS: type names, QoS and type hashes as ROS's own nodes have them.

Messages are CDR by rosbags. Cyclone DDS sees only bytes: its own encoder in Python needs a second for a large picture.
"""

from __future__ import annotations

import functools
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.ros_types import type_hash, typestore

_NODE_BASE, _NODE_NAME, _NODE_ARRAY = 1, 2, 3
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def topic_name(name: str) -> str:
    """Return the DDS name of a ROS topic: /camera/image_raw is rt/camera/image_raw."""
    return f"rt/{name.strip('/')}"


def type_name(name: str) -> str:
    """Return the DDS name of a ROS type: sensor_msgs/msg/Image is sensor_msgs::msg::dds_::Image_."""
    package, _, kind = name.partition("/msg/")
    return f"{package}::msg::dds_::{kind}_"


def import_cyclonedds() -> Any:
    """Return the package cyclonedds; raises QwenVLError where it is missing."""
    try:
        import cyclonedds.core
        import cyclonedds.domain
        import cyclonedds.pub
        import cyclonedds.sub
        import cyclonedds.topic
        import cyclonedds.util
    except ImportError:
        raise QwenVLError(
            "this node needs cyclonedds, which is not installed; run: pip install 'qwenvl-edge[dds]'"
        ) from None
    return cyclonedds


@functools.cache
def wire_type(name: str) -> Any:
    """Return the class of a ROS type whose samples are CDR: `data` holds the bytes with their header."""
    from cyclonedds.idl import IdlStruct

    kind = _struct(name)

    def serialize(self: Any, *given: Any, **options: Any) -> bytes:
        data: bytes = self.data
        return data

    def deserialize(cls: Any, data: bytes, *given: Any, **options: Any) -> Any:
        sample = cls.__new__(cls)
        sample.data = data
        return sample

    kind.serialize = serialize
    kind.deserialize = classmethod(deserialize)
    assert issubclass(kind, IdlStruct)
    return kind


def sample(name: str, data: bytes) -> Any:
    """Return a sample of a wire_type."""
    return wire_type(name).deserialize(data)


@functools.cache
def _struct(name: str) -> Any:
    """The IDL structure of a ROS type; ROS's members have an underscore behind their names there."""
    from cyclonedds.idl import make_idl_struct

    fields = typestore().fielddefs[name][1]
    members = {f"{field}_": _member(kind) for field, kind in fields}
    return make_idl_struct(name.rpartition("/")[2], type_name(name), members)


def _member(kind: Any) -> Any:
    from cyclonedds.idl import types

    node, of = int(kind[0]), kind[1]
    if node == _NODE_BASE:
        base = of[0]
        if base in _WHOLE:
            return getattr(types, base)
        return {"string": str, "bool": bool}.get(base, types.uint8)  # byte and char are octets
    if node == _NODE_NAME:
        return _struct(of)
    inner, count = of
    if node == _NODE_ARRAY:
        return types.array[_member(inner), count]
    return types.sequence[_member(inner), count] if count else types.sequence[_member(inner)]


def sensor_qos() -> Any:
    """Return the QoS of pictures: best effort, the newest only."""
    policy, qos = _qos()
    return qos(
        policy.Reliability.BestEffort,
        policy.History.KeepLast(1),
        policy.DataRepresentation(use_cdrv0_representation=True),
    )


def reliable_qos(depth: int = 10, *, keep: bool = False) -> Any:
    """Return the QoS of all else: reliable, `depth` messages; with `keep` the last one for who subscribes later."""
    policy, qos = _qos()
    policies = [
        policy.Reliability.Reliable(100_000_000),
        policy.History.KeepLast(depth),
        policy.DataRepresentation(use_cdrv0_representation=True),
    ]
    return qos(*policies, *([policy.Durability.TransientLocal] if keep else []))


def hashed(qos: Any, name: str) -> Any:
    """Return a QoS that also has the hash of a type, as rmw_cyclonedds tells it since Iron."""
    policy, kind = _qos()
    return qos + kind(policy.Userdata(data=f"typehash={type_hash(name)};".encode()))


def _qos() -> tuple[Any, Any]:
    from cyclonedds.qos import Policy, Qos

    return Policy, Qos
