"""The settings of a node as ROS's parameters, which change while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.robotics.node import NodeSettings

DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "max_rate_hz": 0.0,
    "max_age_ms": 0.0,
    "max_new_tokens": 0,
    "deadline_ms": 0.0,
}
"""Parameters that change a node's settings. Theirs have a type and always a value: "" and 0 stand for none."""

TEXTS = {
    "prompt": "asked about every new frame; empty: only questions are answered",
    "max_rate_hz": "how often the prompt is asked at most, per second; 0: no limit",
    "max_age_ms": "frames older than this are not answered about; 0: any age",
    "max_new_tokens": "the longest answer, in tokens; 0: the bundle's own limit",
    "deadline_ms": "an answer ends after so many milliseconds; 0: none",
}
"""Description of each, for `ros2 param describe`."""


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
