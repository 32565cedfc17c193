"""ROS parameters of a node, which change while it runs: requests of the parameter services in, responses out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.node import NodeSettings
from qwenvl_edge.robotics.ros_services import PARAMETER_SERVICES, response
from qwenvl_edge.robotics.ros_types import blank

DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "max_rate_hz": 0.0,
    "max_age_ms": 0.0,
    "max_new_tokens": 0,
    "deadline_ms": 0.0,
}
"""Parameters that change a node's settings. Theirs have a type and always a value: "" and 0 stand for none."""

_TEXTS = {
    "prompt": "asked about every new frame; empty: only questions are answered",
    "max_rate_hz": "how often the prompt is asked at most, per second; 0: no limit",
    "max_age_ms": "frames older than this are not answered about; 0: any age",
    "max_new_tokens": "the longest answer, in tokens; 0: the bundle's own limit",
    "deadline_ms": "an answer ends after so many milliseconds; 0: none",
}
_TYPES = {int: 2, float: 3, str: 4}  # rcl_interfaces/msg/ParameterType
_FIELDS = {1: "bool_value", 2: "integer_value", 3: "double_value", 4: "string_value"}
_PARAMETER = "rcl_interfaces/msg/Parameter"


def changed(settings: NodeSettings, values: Mapping[str, Any]) -> NodeSettings:
    """Return settings with other values of parameters; a whole number may stand for any.

    Raises:
        QwenVLError: there is no such parameter, or a value has another type or is out of its range.
    """
    given: dict[str, Any] = {}
    for name, asked in values.items():
        if name not in DEFAULTS:
            raise QwenVLError(f"there is no parameter '{name}' that can change; there are {', '.join(DEFAULTS)}.")
        kind = type(DEFAULTS[name])
        value = float(asked) if kind is float and type(asked) is int else asked
        if type(value) is not kind:
            raise QwenVLError(f"the parameter {name} is {value!r}; give a value of the type {kind.__name__}.")
        given[name] = value or None
    return dataclasses.replace(settings, **given)


def current(settings: NodeSettings) -> dict[str, Any]:
    """Return the value of each parameter."""
    return {name: getattr(settings, name) or default for name, default in DEFAULTS.items()}


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
    descriptor.description = _TEXTS[name]
    return descriptor
