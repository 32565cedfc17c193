"""Types of ROS 2 services, which rosbags does not have: what a node's parameters are asked with."""

from __future__ import annotations

from typing import Any

_PACKAGE = "rcl_interfaces"
_PARTS = {
    "DescribeParameters": ("string[] names", "rcl_interfaces/ParameterDescriptor[] descriptors"),
    "GetParameters": ("string[] names", "rcl_interfaces/ParameterValue[] values"),
    "GetParameterTypes": ("string[] names", "uint8[] types"),
    "ListParameters": ("string[] prefixes\nuint64 depth", "rcl_interfaces/ListParametersResult result"),
    "SetParameters": ("rcl_interfaces/Parameter[] parameters", "rcl_interfaces/SetParametersResult[] results"),
    "SetParametersAtomically": ("rcl_interfaces/Parameter[] parameters", "rcl_interfaces/SetParametersResult result"),
}
PARAMETER_SERVICES = {name: f"{_PACKAGE}/srv/{name}" for name in _PARTS}
"""Their types."""

# ROS's own definition says char, which its type hashes count as uint8.
_EVENT = "uint8 event_type\nbuiltin_interfaces/Time stamp\nuint8[16] client_gid\nint64 sequence_number"


def request(kind: str) -> str:
    """Return the type of a service's requests."""
    return f"{kind}_Request"


def response(kind: str) -> str:
    """Return the type of a service's responses."""
    return f"{kind}_Response"


def definitions(parse: Any, nodetype: Any) -> dict[str, Any]:
    """Return the fields of all types by their names, as rosbags takes them.

    parse, nodetype: rosbags' get_types_from_msg and Nodetype. A service is a structure of its request, its response and
    the event that tells of both; its type hash is that structure's.
    """

    def named(name: str) -> tuple[Any, str]:
        return nodetype.NAME, name

    def at_most_one(name: str) -> tuple[Any, Any]:
        return nodetype.SEQUENCE, (named(name), 1)

    kinds: dict[str, Any] = dict(parse(_EVENT, "service_msgs/msg/ServiceEventInfo"))
    for name, texts in _PARTS.items():
        kind = PARAMETER_SERVICES[name]
        for part, text in zip((request(kind), response(kind)), texts, strict=True):
            (kinds[part],) = parse(text, f"{_PACKAGE}/msg/{name}").values()
        event = [
            ("info", named("service_msgs/msg/ServiceEventInfo")),
            ("request", at_most_one(request(kind))),
            ("response", at_most_one(response(kind))),
        ]
        kinds[f"{kind}_Event"] = ([], event)
        parts = [("request", request(kind)), ("response", response(kind)), ("event", f"{kind}_Event")]
        kinds[kind] = ([], [(f"{field}_message", named(part)) for field, part in parts])
    return kinds
