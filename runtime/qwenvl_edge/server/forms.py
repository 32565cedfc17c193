"""The form that a request wants its answer in, by any of the names that clients use -> a Constraint."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.errors import PromptError
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.messages import refused
from qwenvl_edge.server.schema import (
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Sampling,
    StructuredOutputs,
)

Maker: TypeAlias = Callable[[], Constraint]
MOST_BYTES = 64 << 10
"""The largest form that is taken."""
_OTHERS = ("structural_tag", "guided_whitespace_pattern", "guided_decoding_backend")


def check_forms(raw: dict[str, Any]) -> None:
    """Refuse the forms of other servers that this one does not have. Raises ApiError."""
    structured = raw.get("structured_outputs")
    inside = structured if isinstance(structured, dict) else {}
    for place, fields in (("", raw), ("structured_outputs.", inside)):
        for name in _OTHERS:
            if fields.get(name) is not None:
                raise refused(
                    place + name,
                    "is not supported; give json_schema, guided_regex, guided_choice or grammar",
                )


def given_form(request: Sampling) -> tuple[str, Maker] | None:
    """Return the field in which a request names a form, and what makes it; None if the answer is free.

    Raises:
        ApiError: the request names several, or none where it says that there is one.
    """
    forms = _given(request)
    if len(forms) > 1:
        raise refused(list(forms)[1], f"asks for a form beside {next(iter(forms))}; send one of them")
    return next(iter(forms.items()), None)


def made(name: str, make: Maker) -> Constraint:
    """Return the form of a field, which takes a while if it is large. Raises ApiError: it is malformed or too large."""
    try:
        form = make()
    except PromptError as error:
        raise ApiError(400, f"{name}: {error}", param=name) from None
    check_size(name, form)
    return form


def _given(request: Sampling) -> dict[str, Maker]:
    """Return what makes the form of each field that has one."""
    forms: dict[str, Maker] = {}
    if isinstance(request, ChatRequest):
        match request.response_format:
            case JsonObjectFormat(definition=definition):
                forms["response_format"] = partial(Constraint.json, definition)
            case JsonSchemaFormat(json_schema=schema):
                forms["response_format"] = partial(Constraint.json, schema.definition)
    if request.json_schema is not None:
        forms["json_schema"] = partial(Constraint.json, request.json_schema)
    if request.guided_json is not None:
        forms["guided_json"] = partial(_json, request.guided_json, "guided_json")
    if request.guided_regex is not None:
        forms["guided_regex"] = partial(Constraint.regex, request.guided_regex)
    if request.guided_choice is not None:
        forms["guided_choice"] = partial(Constraint.choice, request.guided_choice)
    for name, grammar in (("grammar", request.grammar), ("guided_grammar", request.guided_grammar)):
        if grammar:  # llama.cpp's clients send an empty one where they want none
            forms[name] = partial(Constraint.gbnf, grammar)
    if request.structured_outputs is not None:
        forms |= {f"structured_outputs.{name}": make for name, make in _structured(request.structured_outputs).items()}
    return forms


def check_size(name: str, form: Constraint) -> None:
    """Check the size of the form in a field. Raises ApiError: it is too large."""
    if len(form.source) > MOST_BYTES:
        raise refused(name, f"is a form of {len(form.source):,} bytes, more than {MOST_BYTES:,}; make it smaller")


def _structured(given: StructuredOutputs) -> dict[str, Maker]:
    forms: dict[str, Maker] = {}
    if given.json_ is not None:
        forms["json"] = partial(_json, given.json_, "structured_outputs.json")
    if given.regex is not None:
        forms["regex"] = partial(Constraint.regex, given.regex)
    if given.choice is not None:
        forms["choice"] = partial(Constraint.choice, given.choice)
    if given.grammar is not None:
        forms["grammar"] = partial(Constraint.gbnf, given.grammar)
    if given.json_object:
        forms["json_object"] = Constraint.json
    if not forms:
        raise refused("structured_outputs", "names no form; give json, regex, choice, grammar or json_object")
    return forms


def _json(given: dict[str, Any] | str, where: str) -> Constraint:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise refused(where, "is a string that is no JSON; give a JSON Schema") from None
    if not isinstance(given, dict):
        raise refused(where, "is no JSON object; give a JSON Schema")
    return Constraint.json(given)


def too_complex(where: str) -> ApiError:
    """Return the error for a form whose compilation exceeds the limits."""
    return ApiError(
        400,
        "the form of the answer is too complex to be compiled within the server's limits of time and memory; simplify "
        "its patterns, or ask for less at once.",
        param=where,
        code="constraint_too_complex",
    )
