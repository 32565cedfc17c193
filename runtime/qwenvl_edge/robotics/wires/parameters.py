"""ROS parameters of a node, which change while it runs: requests of the parameter services in, responses out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.node import NodeSettings
from qwenvl_edge.robotics.parameters import DEFAULTS, TEXTS, changed, current
from qwenvl_edge.robotics.ros_services import PARAMETER_SERVICES, response
from qwenvl_edge.robotics.ros_types import blank

_TYPES = {int: 2, float: 3, str: 4}  # rcl_interfaces/msg/ParameterType
_FIELDS = {1: "bool_value", 2: "integer_value", 3: "double_value", 4: "string_value"}
_PARAMETER = "rcl_interfaces/msg/Parameter"


class Parameters:
    """Answers the six services of a node's parameters.

    Args:
        node: the node's absolute name.
        settings: those at the start.
        change: takes the new settings.
        tell: takes a rcl_interfaces/msg/ParameterEvent after every change.
    """

    def __init__(
        self, node: str, settings: NodeSettings, change: Callable[[NodeSettings], None], tell: Callable[[Any], None]
    ) -> None:
        self._node, self._settings, self._change, self._tell = node, settings, change, tell

    def answer(self, service: str, asked: Any) -> Any:
        """Return the response to a request of `service`, a key of PARAMETER_SERVICES."""
        found = blank(response(PARAMETER_SERVICES[service]))
        if service == "ListParameters":
            found.result.names = list(_listed(asked.prefixes))
        elif service == "SetParameters":
            found.results = [self._set([each]) for each in asked.parameters]
        elif service == "SetParametersAtomically":
            found.result = self._set(asked.parameters)
        elif service == "DescribeParameters":
            found.descriptors = [_descriptor(name) for name in asked.names if name in DEFAULTS]
        else:
            values = current(self._settings)
            known = [name for name in asked.names if name in values]
            if service == "GetParameters":
                found.values = [_value(values[name]) for name in known]
            else:
                found.types = np.array([_TYPES[type(values[name])] for name in known], np.uint8)
        return found

    def _set(self, parameters: Iterable[Any]) -> Any:
        """Change all of `parameters`, or none."""
        result = blank("rcl_interfaces/msg/SetParametersResult")
        parameters = list(parameters)
        try:
            self._settings = changed(self._settings, {each.name: _read(each.value) for each in parameters})
        except QwenVLError as error:
            result.reason = str(error)
            return result
        self._change(self._settings)
        result.successful = True
        self._tell(self._event([each.name for each in parameters]))
        return result

    def _event(self, names: list[str]) -> Any:
        event = blank("rcl_interfaces/msg/ParameterEvent")
        event.stamp.sec, event.stamp.nanosec = divmod(time.time_ns(), 10**9)
        event.node = self._node
        values = current(self._settings)
        for name in names:
            parameter = blank(_PARAMETER)
            parameter.name, parameter.value = name, _value(values[name])
            event.changed_parameters.append(parameter)
        return event


def _listed(prefixes: Iterable[str]) -> Iterable[str]:
    """The names that begin with one of `prefixes`; no name has a dot in it."""
    wanted = set(prefixes)
    return (name for name in DEFAULTS if not wanted or name in wanted)


def _value(value: Any) -> Any:
    message = blank("rcl_interfaces/msg/ParameterValue")
    message.type = _TYPES[type(value)]
    setattr(message, _FIELDS[message.type], value)
    return message


def _read(message: Any) -> Any:
    """The value of a ParameterValue; None for a type that no parameter has."""
    field = _FIELDS.get(int(message.type))
    return None if field is None else getattr(message, field)


def _descriptor(name: str) -> Any:
    descriptor = blank("rcl_interfaces/msg/ParameterDescriptor")
    descriptor.name, descriptor.type = name, _TYPES[type(DEFAULTS[name])]
    descriptor.description = TEXTS[name]
    return descriptor
