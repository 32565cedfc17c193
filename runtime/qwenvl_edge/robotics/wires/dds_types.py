"""ROS 2 messages on DDS by Eclipse Cyclone DDS: type names, QoS and type hashes as ROS's own nodes have them.

Messages are CDR by rosbags. Cyclone DDS sees only bytes: its own encoder in Python needs a second for a large picture.
"""

from __future__ import annotations

import functools
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.ros_types import type_hash, typestore
from qwenvl_edge.robotics.wires.wire import Quality, dds_type

_BLOCKING_NS = 100_000_000
_NODE_BASE, _NODE_NAME, _NODE_ARRAY = 1, 2, 3
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def topic_name(name: str) -> str:
    """Return the DDS name of a ROS topic: /camera/image_raw is rt/camera/image_raw."""
    return f"rt/{name.strip('/')}"


def service_names(name: str) -> tuple[str, str]:
    """Return the DDS names of a ROS service's topics, of its requests and of its responses."""
    return f"rq/{name.strip('/')}Request", f"rr/{name.strip('/')}Reply"


def import_cyclonedds() -> Any:
    """Return the package cyclonedds; raises QwenVLError where it is missing."""
    try:
        import cyclonedds.core
        import cyclonedds.domain
        import cyclonedds.pub
        import cyclonedds.qos
        import cyclonedds.sub
        import cyclonedds.topic
        import cyclonedds.util
    except ImportError:
        raise QwenVLError(
            "this node needs cyclonedds, which is not installed; run: pip install 'qwenvl-edge[dds]'"
        ) from None
    return cyclonedds


@functools.cache
def wire_type(name: str, *, asked: bool = False, store: Any = None) -> Any:
    """Return the class of a ROS type whose samples are CDR: `data` holds the bytes with their header.

    asked: it belongs to a service, and which request it is comes first. store: where the type is, if not `typestore()`.
    """

    def serialize(self: Any, *given: Any, **options: Any) -> bytes:
        data: bytes = self.data
        return data

    def deserialize(cls: Any, data: bytes, *given: Any, **options: Any) -> Any:
        sample = cls.__new__(cls)
        sample.data = data
        return sample

    # A class of its own: structures may be members of others, whose samples Cyclone DDS describes by their fields.
    kind = _make_struct(name, asked, store or typestore())
    kind.serialize = serialize
    kind.deserialize = classmethod(deserialize)
    return kind


def sample(kind: Any, data: bytes | bytearray) -> Any:
    """Return a sample of a class that wire_type gave."""
    return kind.deserialize(data)


def _make_struct(name: str, asked: bool, store: Any) -> Any:
    """The IDL structure of a ROS type; ROS's members have an underscore after their names there."""
    from cyclonedds.idl import make_idl_struct, types

    # rmw_cyclonedds tells by the client and a number which request it is.
    first = {"client_": types.uint64, "number_": types.int64} if asked else {}
    members = {f"{field}_": _member(kind, store) for field, kind in store.fielddefs[name][1]}
    return make_idl_struct(name.rpartition("/")[2], dds_type(name), {**first, **members})


@functools.cache
def _struct(name: str, store: Any) -> Any:
    return _make_struct(name, False, store)


def _member(kind: Any, store: Any) -> Any:
    from cyclonedds.idl import types

    node, of = int(kind[0]), kind[1]
    if node == _NODE_BASE:
        base = of[0]
        if base in _WHOLE:
            return getattr(types, base)
        return {"string": str, "bool": bool}.get(base, types.uint8)  # byte and char are octets
    if node == _NODE_NAME:
        return _struct(of, store)
    inner, count = of
    if node == _NODE_ARRAY:
        return types.array[_member(inner, store), count]
    return types.sequence[_member(inner, store), count] if count else types.sequence[_member(inner, store)]


def dds_qos(quality: Quality, user_data: str = "") -> Any:
    """Return DDS's form of a quality; `user_data` is what others read of an end."""
    from cyclonedds.qos import Policy, Qos

    policies = [
        Policy.Reliability.Reliable(_BLOCKING_NS) if quality.reliable else Policy.Reliability.BestEffort,
        Policy.History.KeepLast(quality.depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
    ]
    if quality.keep:
        policies.append(Policy.Durability.TransientLocal)
    if user_data:
        policies.append(Policy.Userdata(data=user_data.encode()))
    return Qos(*policies)


def hash_data(name: str) -> str:
    """Return the user data that tells a type's hash, as rmw_cyclonedds has it since Iron."""
    return f"typehash={type_hash(name)};"
