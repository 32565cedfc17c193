"""Strict reading of JSON values into frozen dataclasses: every key known, every type as declared, none missing that
has no default."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.urls import show, shown

Record = TypeVar("Record")
_MOST = 1 << 53  # a larger whole number cannot be a count, size or offset


def read_object(text: str, where: str, error: type[QwenVLError], remedy: str = "") -> dict[str, Any]:
    """Read the JSON object in `text`; `where` names it in messages, which end with `remedy`.

    Raises:
        error: it is not JSON, nested too deeply, or not an object.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else shown(problem)
        raise error(f"{where} is not JSON ({reason}){remedy}.") from None
    if not isinstance(raw, dict):
        raise error(f"{where} is not a JSON object but {_name(raw)}{remedy}.")
    return raw


class Document:
    """A dataclass that is a JSON file of its own, called FILE_NAME."""

    FILE_NAME: ClassVar[str]

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"  # type: ignore[call-overload]

    def write(self, folder: Path) -> None:
        """Write the file into `folder`."""
        (folder / self.FILE_NAME).write_text(self.to_json(), encoding="utf-8")


def read_record(cls: type[Record], raw: Any, where: str, error: type[QwenVLError]) -> Record:
    """Build dataclass `cls` from the JSON object `raw`; `where` names the object in messages.

    Fields may be int, float, bool, str, Any, another dataclass, dict[str, X], tuple[X, Y] or tuple[X, ...].

    Raises:
        error: a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(raw, Mapping):
        raise error(f"{where}: expected an object, found {_name(raw)}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - set(fields)):
        raise error(f"{where}: unknown key {', '.join(map(shown, unknown))}; known are {', '.join(fields)}.")
    if missing := [name for name, field in fields.items() if name not in raw and field.default is dataclasses.MISSING]:
        raise error(f"{where}: missing key {', '.join(missing)}.")
    hints = get_type_hints(cls)
    return cls(**{name: _read_value(hints[name], raw[name], f"{where}: {name}", error) for name in raw})


def _read_value(hint: Any, raw: Any, where: str, error: type[QwenVLError]) -> Any:
    if hint is Any:
        return raw
    if dataclasses.is_dataclass(hint):
        return read_record(hint, raw, where, error)  # type: ignore[arg-type]
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        if not isinstance(raw, Mapping):
            raise error(f"{where}: expected an object, found {_name(raw)}.")
        return {key: _read_value(arguments[1], value, f'{where}["{shown(key)}"]', error) for key, value in raw.items()}
    if get_origin(hint) is tuple:
        is_list = isinstance(raw, (list, tuple))  # a record that was not written yet has tuples
        if arguments[-1] is Ellipsis and is_list:
            arguments = arguments[:1] * len(raw)
        if not is_list or len(raw) != len(arguments):
            raise error(f"{where}: expected a list of {len(arguments)} values, found {_name(raw)}.")
        return tuple(_read_value(each, value, where, error) for each, value in zip(arguments, raw, strict=True))
    if type(raw) is int and abs(raw) > _MOST:
        raise error(f"{where}: the number {show(raw)} is out of range.")
    if hint is float and type(raw) in (int, float) and math.isfinite(raw):
        return float(raw)
    if type(raw) is not hint or hint is float:
        raise error(f"{where}: expected {hint.__name__}, found {_name(raw)}.")
    return raw


def _name(raw: Any) -> str:
    return "null" if raw is None else f"{type(raw).__name__} {show(raw)}"
