"""Errors of the schema as sentences: which field, what it holds, what it may hold."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.messages import kind_of, refused, shortened

_EXPECTED = "Input should be "


def complaint(error: ValidationError, raw: Any, model: type[BaseModel]) -> ApiError:
    """Return the first error of a request `raw`, validated by `model`, as the one that its client gets."""
    found = [(_place(each["loc"], raw), each) for each in error.errors(include_url=False)]
    # Of a field that may be words or a list, the first error is that it is no words; one inside the list tells more,
    # and of a misspelt field its name more than that the right one is missing.
    inside = [each for each in found if each[0].startswith(f"{found[0][0]}.")]
    told = max(inside, key=lambda each: (each[0].count("."), each[1]["type"] == "extra_forbidden"), default=found[0])
    where, first = told
    value, context = first.get("input"), first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return refused(where, f"is a field that this server does not know{_alike(where, model)}; leave it out")
        case "missing":
            return refused(where, "is missing")
        case "too_long":
            return refused(where, f"has {context['actual_length']:,} items, more than {context['max_length']:,}")
        case "too_short":
            return refused(where, "is empty" if not value else f"has fewer items than {context['min_length']}")
    if not where:
        return refused("the request", f"is {kind_of(raw)}; send a JSON object")
    said = first["msg"]
    wanted = said.removeprefix(_EXPECTED) if said.startswith(_EXPECTED) else f"{said[:1].lower()}{said[1:]}"
    return refused(where, f"is {shortened(value)}; give {_article(wanted)}{wanted}")


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


def _article(wanted: str) -> str:
    """Return "a number " before what is said of a number only."""
    return "a number " if wanted.startswith(("greater", "less")) else ""
