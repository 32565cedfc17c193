"""ROS 2's wire on Zenoh, as rmw_zenoh's nodes (Jazzy and newer) have it."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say
from qwenvl_edge.robotics.messages import reason
from qwenvl_edge.robotics.ros_types import serialize
from qwenvl_edge.robotics.wires import zenoh_names
from qwenvl_edge.robotics.wires.wire import RELIABLE, Quality, Request

_ROUTER = "tcp/localhost:7447"
_ROUTER_S = 3.0  # for its first connection
_HEARTBEAT_S = 0.5  # tells who missed a message, while there are new ones
# As rmw_zenoh's sessions are by default: found by the router, not by multicast; kept messages are in order of time.
_CONFIG = {
    "mode": "peer",
    "connect/endpoints": [_ROUTER],
    "listen/endpoints": ["tcp/localhost:0"],
    "scouting/multicast/enabled": False,
    "scouting/gossip/enabled": True,
    "timestamping/enabled": {"router": True, "peer": True, "client": True},
}


@dataclass
class _Writer:
    publisher: Any
    identifier: bytes
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ZenohWire:
    """A node's Zenoh session, a Wire.

    Args:
        domain: ROS_DOMAIN_ID.
        name: the node's absolute name.
        config: a Zenoh configuration (JSON5); None is as rmw_zenoh's sessions are, with a router on this machine.

    Raises:
        QwenVLError: eclipse-zenoh or xxhash is not installed, or Zenoh cannot start.
    """

    def __init__(self, domain: int = 0, name: str = "/qwenvl", config: str | None = None) -> None:
        self._zenoh = _import_zenoh()
        try:
            self._session = self._zenoh.open(_read_config(self._zenoh, config))
        except self._zenoh.ZError as error:
            raise QwenVLError(f"Zenoh cannot start: {reason(error)}; look at the configuration.") from None
        self._domain = domain
        self._tokens = zenoh_names.NodeTokens(domain, str(self._session.zid()), name)
        self._declared = [self._session.liveliness().declare_token(self._tokens.node())]
        self._came = threading.Event()
        self._ended = False
        self._kept: list[Any] = []  # subscribers and queryables, which end with their last reference

    def reader(self, topic: str, kind: str, quality: Quality) -> Any:
        """Subscribe a ROS topic; `take` gives its messages, of which the last `depth` wait."""
        messages: deque[bytes] = deque(maxlen=quality.depth)

        def take(sample: Any) -> None:
            messages.append(sample.payload.to_bytes())
            self._came.set()

        self._kept.append(self._session.declare_subscriber(zenoh_names.key(self._domain, topic, kind), take))
        self._declare(zenoh_names.READER, topic, kind, quality)
        return messages

    def writer(self, topic: str, kind: str, quality: Quality) -> Any:
        """Offer a ROS topic; `write` sends messages."""
        reliability, ext = self._zenoh.Reliability, self._zenoh.ext
        kept = {
            "cache": ext.CacheConfig(quality.depth),
            "publisher_detection": True,
            "sample_miss_detection": ext.MissDetectionConfig(sporadic_heartbeat=_HEARTBEAT_S),
        }
        publisher = ext.declare_advanced_publisher(
            self._session,
            zenoh_names.key(self._domain, topic, kind),
            congestion_control=self._zenoh.CongestionControl.DROP,
            reliability=reliability.RELIABLE if quality.reliable else reliability.BEST_EFFORT,
            **(kept if quality.keep else {}),
        )
        token = self._declare(zenoh_names.WRITER, topic, kind, quality)
        return _Writer(publisher, zenoh_names.identifier(token))

    def service(self, name: str, kind: str) -> Any:
        """Offer a ROS service; `requests` gives what it is asked."""
        asked: deque[Any] = deque(maxlen=RELIABLE.depth)
        key = zenoh_names.key(self._domain, name, kind)

        def take(query: Any) -> None:
            if len(asked) == asked.maxlen:
                asked.popleft().drop()  # or its client would wait on
            asked.append(query)
            self._came.set()

        self._kept.append(self._session.declare_queryable(key, take, complete=True))
        self._declare(zenoh_names.SERVICE, name, kind, RELIABLE)
        return key, asked

    def _declare(self, entity: str, topic: str, kind: str, quality: Quality) -> str:
        token = self._tokens.end(len(self._declared), entity, topic, kind, quality)
        self._declared.append(self._session.liveliness().declare_token(token))
        return token

    def wait(self, seconds: float) -> None:
        """Wait until a message, a request or `wake` comes."""
        self._came.wait(seconds)
        if not self._ended:
            self._came.clear()

    def wake(self) -> None:
        """End `wait`, now and from then on."""
        self._ended = True
        self._came.set()

    def take(self, reader: Any) -> list[bytes]:
        """Return the messages that have come, as CDR."""
        return _pop_all(reader)

    @staticmethod
    def write(writer: _Writer, message: Any) -> None:
        """Send a message of `ros_types`; from any thread."""
        data = serialize(message)
        with writer.lock:
            writer.sent += 1
            writer.publisher.put(data, attachment=zenoh_names.attachment(writer.sent, writer.identifier))

    def requests(self, service: Any) -> list[Request]:
        """Return the requests that have come; one without an attachment of rmw_zenoh's is refused."""
        key, asked = service
        found = []
        for query in _pop_all(asked):
            try:
                if query.payload is None or query.attachment is None:
                    raise ValueError("the request has no payload or no attachment")
                number, client = zenoh_names.read_attachment(query.attachment.to_bytes())
            except ValueError as error:
                with query:
                    query.reply_err(str(error))
                continue
            found.append(Request(query.payload.to_bytes(), _answerer(query, key, number, client)))
        return found

    def close(self) -> None:
        """End the session, and with it the node's place in the graph."""
        self._session.close()

    def find_router(self) -> bool:
        """Return whether a router is connected; waits a moment for it."""
        until = time.monotonic() + _ROUTER_S
        while not (found := list(self._session.info.routers_zid())) and time.monotonic() < until:
            time.sleep(0.1)
        return bool(found)


def _answerer(query: Any, key: str, number: int, client: bytes) -> Callable[[bytes], None]:
    def answer(data: bytes) -> None:
        with query:
            query.reply(key, data, attachment=zenoh_names.attachment(number, client))

    return answer


def _pop_all(messages: deque[Any]) -> list[Any]:
    """Empty a deque that another thread appends to."""
    found = []
    while messages:
        found.append(messages.popleft())
    return found


def _read_config(zenoh: Any, path: str | None) -> Any:
    if path is not None:
        return zenoh.Config.from_file(path)
    config = zenoh.Config()
    for name, value in _CONFIG.items():
        config.insert_json5(name, json.dumps(value))
    return config


def _import_zenoh() -> Any:
    try:
        import xxhash  # noqa: F401
        import zenoh
        import zenoh.ext
    except ImportError as error:
        raise QwenVLError(
            f"this node needs {error.name}, which is not installed; run: pip install 'qwenvl-edge[rmw-zenoh]'"
        ) from None
    return zenoh


def warn_without_router(wire: ZenohWire) -> None:
    """Say so if no router is there, which ROS's nodes are found by."""
    if not wire.find_router():
        say("no Zenoh router is connected yet; start one: ros2 run rmw_zenoh_cpp rmw_zenohd")
