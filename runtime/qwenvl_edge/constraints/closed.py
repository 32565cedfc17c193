"""Objects of a JSON Schema closed: no keys but those that it names, unless it says something about others.

By the specification an object whose schema does not mention `additionalProperties` may have any further keys. A model
held to such a schema writes keys until it is cut, and few who write schemas mean that. So a missing
`additionalProperties` counts as false where `properties` are named, as in llama.cpp; `true` opens the object.

Schemas that are true together (allOf, a $ref beside properties) describe one object: closed one by one they would
exclude each other's keys. There the outermost schema names the keys of all of them and is closed, and its members stay
open.
"""

from __future__ import annotations

from typing import Any

_OF_NAMES = ("properties", "patternProperties", "dependentSchemas")
_OF_ITEMS = ("items", "additionalItems", "contains", "additionalProperties")
_BRANCHES = ("anyOf", "oneOf")
_DEFINITIONS = ("$defs", "definitions")
_SAID = ("additionalProperties", "unevaluatedProperties", "patternProperties")


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a JSON Schema with its objects closed. Raises RecursionError if it is nested too deeply."""
    return _Closer(schema).root()


class _Closer:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._opened: dict[str, dict[str, Any]] = {}

    def root(self) -> dict[str, Any]:
        """Return the closed schema, with open copies of definitions beside those that are used alone."""
        result: dict[str, Any] = self._level(self._schema, open_=False)
        for group in _DEFINITIONS:
            if isinstance(found := self._schema.get(group), dict):
                result[group] = {name: self._level(each, open_=False) for name, each in found.items()}
        for group, copies in self._opened.items():
            result[group] = {**result[group], **copies}
        return result

    def _level(self, schema: Any, *, open_: bool) -> Any:
        """Copy a schema; open_: another one closes the object that it describes."""
        if not isinstance(schema, dict):
            return schema
        together = self._members(schema)
        # A union or a reference that stands alone leaves the closing to what it names.
        closes = not open_ and (isinstance(schema.get("properties"), dict) or len(together) > 1)
        open_members = open_ or closes
        result = {key: self._value(key, value, open_=open_members) for key, value in schema.items()}
        if not closes or any(key in each for each in (schema, *together) for key in _SAID):
            return result
        names = self._names(schema, set())
        if not names and "properties" not in schema:
            return result
        own = result.get("properties", {})
        if not isinstance(own, dict):  # malformed, which llguidance will say
            return result
        return {
            **result,
            "properties": {**own, **{name: {} for name in names if name not in own}},
            "additionalProperties": False,
        }

    def _value(self, key: str, value: Any, *, open_: bool) -> Any:
        if key in _OF_NAMES and isinstance(value, dict):
            return {name: self._level(each, open_=False) for name, each in value.items()}
        if key in _OF_ITEMS or key == "prefixItems":
            return (
                [self._level(each, open_=False) for each in value]
                if isinstance(value, list)
                else self._level(value, open_=False)
            )
        if key in (*_BRANCHES, "allOf") and isinstance(value, list):
            return [self._level(each, open_=open_ or (key == "allOf" and len(value) > 1)) for each in value]
        if key == "$ref" and open_:
            return self._open_reference(value)
        return value

    def _members(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the schemas that are true of the same object as this one: allOf, and a $ref."""
        members = schema.get("allOf")
        found = [each for each in members if isinstance(each, dict)] if isinstance(members, list) else []
        target = self._target(schema.get("$ref"))
        return found + ([] if target is None else [target])

    def _names(self, schema: Any, seen: set[int]) -> list[str]:
        """Return the keys that a schema names for its object, in order."""
        if not isinstance(schema, dict) or id(schema) in seen:
            return []
        seen.add(id(schema))
        properties = schema.get("properties")
        names = dict.fromkeys(properties) if isinstance(properties, dict) else {}
        branches = [each for key in _BRANCHES if isinstance(schema.get(key), list) for each in schema[key]]
        for each in (*self._members(schema), *branches):
            names |= dict.fromkeys(self._names(each, seen))
        return list(names)

    def _target(self, reference: Any) -> dict[str, Any] | None:
        """Return the definition that a reference names; None if it names something else."""
        place = _definition(reference)
        found = None if place is None else self._schema.get(place[0])
        target = found.get(place[1]) if place is not None and isinstance(found, dict) else None
        return target if isinstance(target, dict) else None

    def _open_reference(self, reference: Any) -> Any:
        """Return the reference of an open copy of a definition."""
        place, target = _definition(reference), self._target(reference)
        if place is None or target is None:
            return reference
        group, name = place
        opened = f"{name}.open"
        copies = self._opened.setdefault(group, {})
        if opened not in copies:
            copies[opened] = {}  # before it is copied: it may refer to itself
            copies[opened] = self._level(target, open_=True)
        return f"#/{group}/{opened}"


def _definition(reference: Any) -> tuple[str, str] | None:
    """Return group and name of a reference such as "#/$defs/Colour"."""
    parts = reference.split("/") if isinstance(reference, str) else []
    if len(parts) == 3 and parts[0] == "#" and parts[1] in _DEFINITIONS and "~" not in parts[2] and "%" not in parts[2]:
        return parts[1], parts[2]
    return None
