"""The interface between a node and a wire of ROS 2: messages and services by ROS's names, their bytes in CDR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Quality:
    """Quality of service of a reader or writer.

    Attributes:
        reliable: lost messages are sent again; else best effort.
        depth: the last messages that are kept.
        keep: a writer's kept messages also go to who subscribes later (ROS: transient local).
    """

    reliable: bool = True
    depth: int = 10
    keep: bool = False


SENSOR = Quality(reliable=False, depth=1)
"""Pictures: the newest only."""
RELIABLE = Quality()
KEPT = Quality(keep=True)
EVENTS = Quality(depth=1000)
"""Changes of parameters, as ROS's own nodes tell them."""


@dataclass(frozen=True)
class Request:
    """A service's request in CDR; `answer` takes the response, in CDR, once."""

    data: bytes
    answer: Callable[[bytes], None]


class Wire(Protocol):
    """A node's way to other nodes; readers, writers and services live as long as it.

    Topics and services have ROS's absolute names, types ROS's: sensor_msgs/msg/Image, rcl_interfaces/srv/GetParameters.
    """

    def reader(self, topic: str, kind: str, quality: Quality) -> Any:
        """Subscribe a topic; `take` gives its messages."""

    def writer(self, topic: str, kind: str, quality: Quality) -> Any:
        """Offer a topic; `write` sends messages."""

    def service(self, name: str, kind: str) -> Any:
        """Offer a service; `requests` gives what it is asked."""

    def take(self, reader: Any) -> list[bytes]:
        """Return the messages that have come, oldest first, as CDR."""

    def write(self, writer: Any, message: Any) -> None:
        """Send a message of `ros_types`."""

    def requests(self, service: Any) -> list[Request]:
        """Return the requests that have come, oldest first."""

    def wait(self, seconds: float) -> None:
        """Wait until a message, a request or `wake` comes."""

    def wake(self) -> None:
        """End `wait`, now and from then on; from any thread."""

    def close(self) -> None:
        """Leave ROS's graph and end."""


def dds_type(kind: str) -> str:
    """Return a type's name on the wires: sensor_msgs/msg/Image is sensor_msgs::msg::dds_::Image_."""
    package, group, name = kind.split("/")
    return f"{package}::{group}::dds_::{name}_"


def split_name(name: str) -> tuple[str, str]:
    """Return the namespace and the name of a node: /front/qwenvl is /front and qwenvl."""
    namespace, _, own = name.rstrip("/").rpartition("/")
    return namespace or "/", own
