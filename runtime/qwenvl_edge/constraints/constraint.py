"""Forms that an answer can be held to: a JSON Schema, a regular expression, one of some choices, or boxes only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwenvl_edge.constraints.closed import closed
from qwenvl_edge.errors import PromptError
from qwenvl_edge.families.tools import Tools


@dataclass(frozen=True)
class Constraint:
    """A form that the answer keeps to, token by token; make one with json, regex, choice, gbnf or boxes.

    An answer that ends by itself (finish_reason "stop") is what the model said. One that is cut (by max_new_tokens, a
    deadline, ...) is closed with the shortest text found that completes the form, so that its raw_text parses too;
    finish_reason says that it was cut. It stays open after a stop string, if nothing was said yet, and if no end of the
    form was found in some milliseconds: `Reply.complete` is False then.
    """

    kind: Literal["json", "regex", "choice", "gbnf", "boxes", "tools"]
    source: str

    @classmethod
    def json(cls, schema: Mapping[str, Any] | None = None) -> Constraint:
        """JSON without white space between its parts that a JSON Schema accepts; None accepts any object.

        An object whose schema names `properties` but says nothing of others has no others;
        `"additionalProperties": true` allows them.

        Raises:
            PromptError: the schema is no object, or cannot be written as JSON.
        """
        if schema is not None and not isinstance(schema, Mapping):
            raise PromptError(f"the JSON Schema is of type {type(schema).__name__}; give a dict.")
        try:
            given = {"type": "object"} if schema is None else closed(dict(schema))
            return cls("json", json.dumps(given, allow_nan=False))
        except RecursionError:
            raise PromptError("the JSON Schema is nested too deeply; make it flatter.") from None
        except (TypeError, ValueError) as error:
            raise PromptError(f"the JSON Schema cannot be written as JSON: {error}.") from None

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole (syntax of Rust's regex crate)."""
        if not isinstance(pattern, str) or not pattern:
            raise PromptError(f"the regular expression is {pattern!r}; give a string that is not empty.")
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Iterable[str]) -> Constraint:
        """One of some strings."""
        listed = list(choices) if isinstance(choices, Iterable) and not isinstance(choices, str) else []
        if not listed or not all(isinstance(choice, str) and choice for choice in listed):
            raise PromptError(f"the choices are {choices!r}; give a list of strings that are not empty.")
        return cls("choice", json.dumps(listed))

    @classmethod
    def gbnf(cls, grammar: str) -> Constraint:
        """Text of a grammar in llama.cpp's notation (GBNF), whose first rule is `root`."""
        if not isinstance(grammar, str) or not grammar.strip():
            raise PromptError(f"the grammar is {grammar!r}; give a string with a rule `root ::= ...`.")
        return cls("gbnf", grammar)

    @classmethod
    def tool_calls(cls, tools: Tools) -> Constraint:
        """Calls of tools, alone or after words; their arguments are closed as the objects of `json` are.

        Raises:
            PromptError: a schema is nested too deeply.
        """
        try:
            return cls("tools", tools.source([(name, closed(schema)) for name, schema in tools.parameters()]))
        except RecursionError:
            raise PromptError("the parameters of a tool are nested too deeply; make them flatter.") from None

    @classmethod
    def boxes(cls) -> Constraint:
        """One or more boxes in the model's grounding markup, with or without labels."""
        return cls("boxes", "")
