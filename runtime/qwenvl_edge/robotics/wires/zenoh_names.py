"""Names and attachments by which rmw_zenoh's nodes know each other; its design document describes them.

A topic's key is DOMAIN/TOPIC/TYPE/HASH. An entity of the graph (node, writer, reader, service) has a liveliness token

    @ros2_lv/DOMAIN/SESSION/NODE/ENTITY/KIND/ENCLAVE/NAMESPACE/NAME[/TOPIC/TYPE/HASH/QOS]

in whose parts a slash is a percent sign. Messages come with a sequence number, a time and the sender's identifier.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from qwenvl_edge.robotics.ros_types import type_hash
from qwenvl_edge.robotics.wires.wire import Quality, dds_type, split_name

NODE, WRITER, READER, SERVICE = "NN", "MP", "MS", "SS"
_RELIABLE, _BEST_EFFORT = 1, 2
_TRANSIENT_LOCAL, _VOLATILE = 1, 2
_KEEP_LAST = 1
_DEFAULT = (_RELIABLE, _VOLATILE, _KEEP_LAST, 42)  # values that a token leaves out
_ID_BYTES = 16
_ATTACHMENT = struct.Struct("<qqB16s")


def key(domain: int, topic: str, kind: str) -> str:
    """Return the key of a topic or a service."""
    return f"{domain}/{topic.strip('/')}/{dds_type(kind)}/{type_hash(kind)}"


@dataclass(frozen=True)
class NodeTokens:
    """Tokens of one node. session: the Zenoh session's identifier in hexadecimal digits; name: absolute."""

    domain: int
    session: str
    name: str

    def node(self) -> str:
        """Return the token of the node itself."""
        return self._token(0, NODE)

    def end(self, number: int, entity: str, topic: str, kind: str, quality: Quality) -> str:
        """Return the token of the node's `number`th reader, writer or service."""
        parts = [f"/{topic.strip('/')}", dds_type(kind), type_hash(kind)]
        return "/".join([self._token(number, entity), *map(_mangle, parts), _qos(quality)])

    def _token(self, number: int, entity: str) -> str:
        namespace, name = split_name(self.name)
        parts = [self.domain, self.session, 0, number, entity, "%", _mangle(namespace), _mangle(name)]
        return "/".join(["@ros2_lv", *map(str, parts)])


def _mangle(name: str) -> str:
    return name.replace("/", "%")


def _qos(quality: Quality) -> str:
    """A quality as a token has it: what is not the default, and nothing of deadlines, lifespans and leases."""
    values = (
        _RELIABLE if quality.reliable else _BEST_EFFORT,
        _TRANSIENT_LOCAL if quality.keep else _VOLATILE,
        _KEEP_LAST,
        quality.depth,
    )
    told = ["" if value == default else str(value) for value, default in zip(values, _DEFAULT, strict=True)]
    return "{}:{}:{},{}:,:,:,,".format(*told)


def identifier(token: str) -> bytes:
    """Return the 16 bytes that identify the entity of a token: XXH3's 128 bits, little-endian."""
    import xxhash

    return xxhash.xxh3_128_digest(token.encode())[::-1]


def attachment(number: int, sender: bytes) -> bytes:
    """Return what comes with a message: its number from 1 on, the time now, the sender's identifier."""
    return _ATTACHMENT.pack(number, time.time_ns(), _ID_BYTES, sender)


def read_attachment(data: bytes) -> tuple[int, bytes]:
    """Return the number and the sender's identifier; raises ValueError where they are not there."""
    if len(data) != _ATTACHMENT.size or data[16] != _ID_BYTES:
        raise ValueError("the attachment is not of rmw_zenoh's form")
    number, _, _, sender = _ATTACHMENT.unpack(data)
    return number, sender
