"""The values of a checkpoint's JSON files, each checked where it is read: type, range, finiteness."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.listing import shortened

MOST = 1 << 24
"""The largest dimension that is believed, unless a value's reader says otherwise."""


@dataclass(frozen=True)
class ConfigValues:
    """A JSON object of the file `where`; `path` is its place there ("visual.", or nothing).

    null counts as absent. Reading a value raises CheckpointError, in one sentence, if it is absent and has no default,
    of another type, not finite, or out of range.
    """

    raw: Mapping[str, Any]
    where: str = "config.json"
    path: str = ""

    def has(self, key: str) -> bool:
        """Tell if `key` has a value."""
        return self.raw.get(key) is not None

    def section(self, key: str) -> ConfigValues:
        """The object at `key`."""
        value = self._value(key)
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object")
        return ConfigValues(value, self.where, f"{self.path}{key}.")

    def whole(self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST) -> int:
        """The whole number at `key`, from `least` to `most`; 4096.0 is one too."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least:,} to {most:,}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0, most: float = 1e12) -> float:
        """The finite number at `key`, more than `above` and at most `most`."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not (math.isfinite(value) and above < value <= most):
            raise self._wrong(key, f"a number above {above:g}, at most {most:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """The truth value at `key`."""
        value = self._value(key, default)
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """The text at `key`."""
        value = self._value(key, default)
        if type(value) is not str:
            raise self._wrong(key, "a text")
        return value

    def wholes(self, key: str, *, least: int = 0, most: int = MOST) -> tuple[int, ...]:
        """The list of whole numbers at `key`."""
        value = self._value(key)
        if not isinstance(value, list) or len(value) > MOST:
            raise self._wrong(key, "a list of whole numbers")
        if not all(type(each) is int and least <= each <= most for each in value):
            raise self._wrong(key, f"a list of whole numbers from {least:,} to {most:,}")
        return tuple(value)

    def _value(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key)
        if value is None and default is None:
            null = " (it is null)" if key in self.raw else ""
            raise CheckpointError(f"{self.where} lacks {self.path}{key}{null}.")
        return default if value is None else value

    def _wrong(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {self.path}{key} is {shown(self.raw.get(key))}; it must be {wanted}.")


def shown(value: Any) -> str:
    """A JSON value as a message shows it, cut to a bearable length."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    return shortened(json.dumps(value, ensure_ascii=False))
