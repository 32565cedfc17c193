"""Errors of the schema as sentences: which field, what it holds, what it may hold."""

from __future__ import annotations

import difflib
import json
from typing import Any

from pydantic import BaseModel, ValidationError

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.messages import kind_of, refused, shortened
from qwenvl_edge.server.schema import NEUTRAL

_EXPECTED = "Input should be "
_OBJECTS = ("model_attributes_type", "model_type", "dict_type")
_KINDS = {
    **dict.fromkeys(_OBJECTS, "an object"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **{"list_type": "a list", "string_type": "a string"},
}
_IN_JSON = {"True": "true", "False": "false", "None": "null"}


def complaint(error: ValidationError, raw: Any, model: type[BaseModel]) -> ApiError:
    """Return the first error of a request `raw`, validated by `model`, as the one that its client gets."""
    found = [(_place(each["loc"], raw), each) for each in error.errors(include_url=False)]
    # Of a field that may be words or a list, the first error is that it is no words; one inside the list tells more,
    # and of a misspelt field its name more than that the right one is missing.
    inside = [each for each in found if each[0].startswith(f"{found[0][0]}.")]
    told = max(inside, key=lambda each: (each[0].count("."), each[1]["type"] == "extra_forbidden"), default=found[0])
    where, first = told
    value, context = first.get("input"), first.get("ctx", {})
    if (reason := _known(first["type"], where, value, context, model)) is not None:
        tag = f".{_tag(context)}" if first["type"].startswith("union_tag") else ""
        return refused(where + tag, reason)
    if not where:
        return refused("the request", f"is {kind_of(raw)}; send a JSON object")
    said = first["msg"]
    wanted = said.removeprefix(_EXPECTED) if said.startswith(_EXPECTED) else f"{said[:1].lower()}{said[1:]}"
    wanted = _KINDS.get(first["type"], _IN_JSON.get(wanted, wanted))
    return refused(where, f"is {shortened(value)}; give {_article(wanted)}{wanted}")


def _known(kind: str, where: str, value: Any, context: dict[str, Any], model: type[BaseModel]) -> str | None:
    """Return the reason for an error of a kind that pydantic has other words for; None for the others."""
    reason = None
    match kind:
        case "extra_forbidden" if where in NEUTRAL:
            reason = f"is not supported; leave it out, or send {json.dumps(NEUTRAL[where])}"
        case "extra_forbidden":
            reason = f"is a field that this server does not know{_alike(where, model)}; leave it out"
        case "missing" | "union_tag_not_found":
            reason = "is missing"
        case "union_tag_invalid":
            reason = f"is {shortened(context['tag'])}; give one of {context['expected_tags']}"
        case "too_long":
            reason = f"has {context['actual_length']:,} items, more than {context['max_length']:,}"
        case "too_short":
            reason = "is empty" if not value else f"has fewer items than {context['min_length']}"
        case "string_too_short":
            reason = "is empty"
        case "string_too_long":
            reason = f"has {len(value):,} characters, more than {context['max_length']:,}"
    return reason


def _place(location: tuple[int | str, ...], raw: Any) -> str:
    """Return the place in the request; names of the schema's own branches are left out."""
    path: list[str] = []
    for step in location:
        if isinstance(raw, dict) and (step in raw or step == location[-1]):
            path.append(str(step))
            raw = raw.get(step)
        elif isinstance(raw, list) and isinstance(step, int) and step < len(raw):
            path.append(str(step))
            raw = raw[step]
    return ".".join(path)


def _alike(where: str, model: type[BaseModel]) -> str:
    """Return ", such as NAME?" for a misspelt field of the request itself."""
    if "." in where:
        return ""
    close = difflib.get_close_matches(where[:80], model.model_fields, 1, 0.8)
    return f" (did you mean {close[0]}?)" if close else ""


def _tag(context: dict[str, Any]) -> str:
    """Return the name of the field that tells which of several records one is."""
    return str(context["discriminator"]).strip("'")


def _article(wanted: str) -> str:
    """Return "a number " before what is said of a number only."""
    return "a number " if wanted.startswith(("greater", "less")) else ""
