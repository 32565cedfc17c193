"""ROS 2's wire on DDS: topics rt/..., services as rmw_cyclonedds has them, and the graph of `ros2 node list`."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.messages import reason
from qwenvl_edge.robotics.ros_services import request, response
from qwenvl_edge.robotics.ros_types import serialize
from qwenvl_edge.robotics.wires.dds_types import (
    dds_qos,
    hash_data,
    import_cyclonedds,
    sample,
    service_names,
    topic_name,
    wire_type,
)
from qwenvl_edge.robotics.wires.wire import RELIABLE, Quality, Request, split_name

_TAKEN = 16  # messages at once
_NS = 10**9
# A picture by best effort comes in a burst, which the socket has to hold; the kernel gives net.core.rmem_max at most.
_ROOM = "<CycloneDDS><Domain><Internal><SocketReceiveBufferSize max='10MB'/></Internal></Domain></CycloneDDS>"
_GRAPH = "rmw_dds_common/msg/ParticipantEntitiesInfo"
_PREFIX = 4  # bytes of a CDR message before its content
_WHICH = 8  # bytes of a client's number, and of a request's
_HEARD_S = 1.0  # the longest wait for a client's reader
_PAUSE_S = 0.005


class Participant:
    """A node's DDS participant, a Wire.

    Args:
        domain: ROS_DOMAIN_ID.
        name: the node's absolute name, for ROS's graph.
        distribution: ROS's; Humble has no type hashes yet and longer identifiers.

    Raises:
        QwenVLError: cyclonedds is not installed, or cannot start.
    """

    def __init__(self, domain: int = 0, name: str = "/qwenvl", *, distribution: str = "jazzy") -> None:
        self._dds = import_cyclonedds()
        os.environ.setdefault("CYCLONEDDS_URI", _ROOM)
        self._hashes = distribution != "humble"
        enclave = self._dds.qos.Qos(self._dds.qos.Policy.Userdata(data=b"enclave=/;"))
        try:
            self._participant = self._dds.domain.DomainParticipant(domain, qos=enclave)
        except self._dds.core.DDSException as error:
            raise QwenVLError(f"DDS cannot start: {reason(error)}; look at CYCLONEDDS_URI and the network.") from None
        self._waiting = self._dds.core.WaitSet(self._participant)
        self._wake = self._dds.core.GuardCondition(self._participant)
        self._waiting.attach(self._wake)
        self._conditions: list[Any] = []
        self._topics: dict[str, Any] = {}
        self._graph = _Graph(self._participant, self._dds, name, _graph_store(distribution))

    def reader(self, topic: str, kind: str, quality: Quality) -> Any:
        """Subscribe a ROS topic; `take` gives its messages."""
        return self._reader(topic_name(topic), wire_type(kind), dds_qos(quality, self._told(kind)))

    def writer(self, topic: str, kind: str, quality: Quality) -> Any:
        """Offer a ROS topic; `write` sends messages."""
        return self._writer(topic_name(topic), wire_type(kind), dds_qos(quality, self._told(kind)))

    def service(self, name: str, kind: str) -> Any:
        """Offer a ROS service as rmw_cyclonedds's clients call it; those of rmw_fastrtps do not find it."""
        requests, replies = service_names(name)
        reader = self._reader(requests, wire_type(request(kind), asked=True), dds_qos(RELIABLE))
        return reader, self._writer(replies, wire_type(response(kind), asked=True), dds_qos(RELIABLE))

    def _told(self, kind: str) -> str:
        return hash_data(kind) if self._hashes else ""

    def _reader(self, topic: str, kind: Any, qos: Any) -> Any:
        core = self._dds.core
        reader = self._dds.sub.DataReader(self._participant, self._topic(topic, kind), qos=qos)
        any_state = core.SampleState.Any | core.ViewState.Any | core.InstanceState.Any
        condition = core.ReadCondition(reader, any_state)
        self._waiting.attach(condition)
        self._conditions.append(condition)  # which would end with its last reference
        self._graph.add(reader=reader)
        return reader

    def _writer(self, topic: str, kind: Any, qos: Any) -> Any:
        writer = self._dds.pub.DataWriter(self._participant, self._topic(topic, kind), qos=qos)
        self._graph.add(writer=writer)
        return writer

    def _topic(self, name: str, kind: Any) -> Any:
        if name not in self._topics:
            self._topics[name] = self._dds.topic.Topic(self._participant, name, kind)
        return self._topics[name]

    def wait(self, seconds: float) -> None:
        """Wait until a message, a request or `wake` comes."""
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
        writer.write(sample(wire_type(message.__msgtype__), serialize(message)))

    def close(self) -> None:
        """Leave ROS's graph; readers and writers end with the participant."""
        self._graph.leave()

    def requests(self, service: Any) -> list[Request]:
        """Return the requests that have come."""
        reader, writer = service
        return [
            _read_request(each.data, functools.partial(_answer, writer, _participant(reader, each)))
            for each in reader.take(_TAKEN)
            if hasattr(each, "data")
        ]


def _participant(reader: Any, asked: Any) -> Any:
    """Return the participant that a request is from; None if it has gone."""
    client = reader.get_matched_publication_data(asked.sample_info.publication_handle)
    return None if client is None else client.participant_key


def _answer(writer: Any, participant: Any, data: bytes) -> None:
    """Write a response, once the reader of the participant that asked is found: before that it would not hear it."""
    ends = time.monotonic() + _HEARD_S
    while participant not in (None, *_listening(writer)) and time.monotonic() < ends:
        time.sleep(_PAUSE_S)
    writer.write(sample(writer.topic.data_type, data))


def _listening(writer: Any) -> list[Any]:
    """Return the participants whose readers a writer has found."""
    found = (writer.get_matched_subscription_data(each) for each in writer.get_matched_subscriptions())
    return [each.participant_key for each in found if each is not None]


def _read_request(data: bytes, send: Callable[[bytes], None]) -> Request:
    """Take apart which request it is and what it asks; the response begins with the former."""
    end = _PREFIX + 2 * _WHICH
    client, number = data[_PREFIX : _PREFIX + _WHICH], data[_PREFIX + _WHICH : end]
    if len(data) > 1 and not data[1] & 1:  # big-endian; responses are little-endian
        client, number = client[::-1], number[::-1]
    return Request(data[:_PREFIX] + data[end:], lambda told: send(told[:_PREFIX] + client + number + told[_PREFIX:]))


class _Graph:
    """Tells ROS's other nodes that a node is here, and which readers and writers are its own."""

    def __init__(self, participant: Any, dds: Any, name: str, store: Any) -> None:
        self._store = store
        kind = wire_type(_GRAPH, store=store)
        topic = dds.topic.Topic(participant, "ros_discovery_info", kind)
        self._writer = dds.pub.DataWriter(participant, topic, qos=dds_qos(Quality(depth=1, keep=True)))
        self._participant, self._kind = participant, kind
        self._namespace, self._name = split_name(name)
        self._readers: list[Any] = []
        self._writers: list[Any] = []

    def add(self, *, reader: Any = None, writer: Any = None) -> None:
        """Tell of one more."""
        self._readers += [self._identifier(reader)] if reader is not None else []
        self._writers += [self._identifier(writer)] if writer is not None else []
        node = self._store.types["rmw_dds_common/msg/NodeEntitiesInfo"](
            self._namespace, self._name, reader_gid_seq=self._readers, writer_gid_seq=self._writers
        )
        self._tell([node])

    def leave(self) -> None:
        """Tell that the node has ended."""
        self._tell([])

    def _tell(self, nodes: list[Any]) -> None:
        message = self._store.types[_GRAPH](self._identifier(self._participant), node_entities_info_seq=nodes)
        data = self._store.serialize_cdr(message, _GRAPH, little_endian=True)
        self._writer.write(sample(self._kind, bytes(data)))

    def _identifier(self, entity: Any) -> Any:
        kind = "rmw_dds_common/msg/Gid"
        size = self._store.fielddefs[kind][1][0][1][1][1]
        padded = entity.get_guid().bytes.ljust(size, b"\0")
        return self._store.types[kind](np.frombuffer(padded, np.uint8))


@functools.cache
def _graph_store(distribution: str) -> Any:
    """Types of a distribution as it came; which of `typestore()` are the same in all."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_HUMBLE if distribution == "humble" else Stores.ROS2_JAZZY)
