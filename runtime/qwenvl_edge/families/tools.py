"""Tools that a model may call: how a caller describes them, the calls in an answer, and the form that calls keep to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.errors import PromptError
from qwenvl_edge.families.json_places import find_objects, finite, whole_characters

CALL_TAGS = ("<tool_call>", "</tool_call>")
RESULT_TAGS = ("<tool_response>", "</tool_response>")
AUTO, NONE, REQUIRED = "auto", "none", "required"

HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
HOW = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_CALL_HEAD = re.compile(rf'\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"arguments"\s*:\s*(?=\{{)')
FORM = '\n{"name": <function-name>, "arguments": <args-json-object>}\n'


@dataclass(frozen=True)
class ToolCall:
    """A call that an answer makes: the tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """The tools of a call, as the published templates show them, and which of them must be called.

    descriptions: {"type": "function", "function": {"name", "description", "parameters"}} each. choice: "auto", "none",
    "required" or a name. parallel: an answer may make several calls.
    """

    descriptions: tuple[dict[str, Any], ...]
    choice: str = AUTO
    parallel: bool = True

    @classmethod
    def read(cls, tools: Any, choice: Any = AUTO, *, parallel: bool = True) -> Tools:
        """Check what a caller gives; a function may stand without its envelope.

        Raises:
            PromptError: a tool has no name or no object of parameters, or the choice is none of them.
        """
        if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
            raise PromptError(f"tools is of type {type(tools).__name__}; give a list of function descriptions.")
        read = tuple(_description(tool) for tool in tools)
        names = [each["function"]["name"] for each in read]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise PromptError(f"two tools have the name {min(doubled)!r}; give each its own.")
        if isinstance(choice, Mapping):  # OpenAI's form of a name
            named = choice.get("function")
            choice = named.get("name") if isinstance(named, Mapping) else None
        if choice not in (AUTO, NONE, REQUIRED, *names):
            known = ", ".join([AUTO, NONE, REQUIRED, *names])
            raise PromptError(f"tool_choice is {choice!r}; it must be one of {known}.")
        return cls(read, choice, parallel)

    def lines(self) -> list[str]:
        """Return the description of each tool as the templates write it."""
        return [json.dumps(each, ensure_ascii=False) for each in self.descriptions]

    def call_ids(self, special_tokens: Mapping[str, int]) -> list[int]:
        """Return the ids of the tags of a call."""
        return [special_tokens[tag] for tag in CALL_TAGS if tag in special_tokens]

    def parameters(self) -> list[tuple[str, dict[str, Any]]]:
        """Return name and JSON Schema of each tool that may be called."""
        functions = [each["function"] for each in self.descriptions]
        chosen = [each for each in functions if self.choice in (AUTO, REQUIRED, each["name"])]
        return [(each["name"], each["parameters"]) for each in chosen]

    def source(self, parameters: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Return the schema of a call, whether one must come and several may, as a constraint's source.

        parameters: those of the method, or stricter schemas.
        """
        # Each schema is a definition, and its references, which begin at its root, lead there.
        places = [f"#/$defs/{number}" for number in range(len(parameters))]
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for (name, _), place in zip(parameters, places, strict=True)
        ]
        schemas = {str(number): _moved(each, places[number]) for number, (_, each) in enumerate(parameters)}
        schema = {"anyOf": calls, "$defs": schemas}
        return json.dumps({"schema": schema, "must": self.choice != AUTO, "parallel": self.parallel})


def _description(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        shown = repr(tool)[:80]
        raise PromptError(f"a tool is {shown}; give {{'name': ..., 'description': ..., 'parameters': JSON Schema}}.")
    name = function["name"]
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(parameters, Mapping):
        raise PromptError(f"the parameters of the tool {name!r} are no JSON Schema; give an object.")
    try:
        described = json.loads(json.dumps({**function, "parameters": parameters}))
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the tool {name!r} cannot be written as JSON: {error}.") from None
    return {"type": "function", "function": described}


def _moved(schema: Any, place: str) -> Any:
    """Return a schema for a place in another one: its own references, which begin with "#", lead there."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(each, place) for name, each in schema.items()}
    if isinstance(reference := moved.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def tool_grammar(source: str, special_tokens: Mapping[str, int]) -> str:
    """Return the Lark grammar of an answer that may call tools, or must. source: of Tools.source."""
    form = json.loads(source)
    opening, closing = (special_tokens[tag] for tag in CALL_TAGS)
    calls = 'call ("\\n" call)*' if form["parallel"] else "call"
    start = calls if form["must"] else f"TEXT? ({calls})?"
    return rf"""
        start: {start}
        call: <[{opening}]> "\n" body "\n" <[{closing}]>
        body: %json {json.dumps(form["schema"])}
        TEXT: /(.|\n)+/
    """


def written_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as a model writes them in an answer; words in their arguments never become tags."""
    opening, closing = CALL_TAGS
    bodies = [json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in calls]
    for tag in (*CALL_TAGS, *RESULT_TAGS):
        bodies = [body.replace(tag, tag.replace("<", "\\u003c")) for body in bodies]
    return "\n".join(f"{opening}\n{body}\n{closing}" for body in bodies)


def read_call(body: str) -> ToolCall | None:
    """Read the body of a call, tolerantly; None if it names no tool."""
    for values in _objects(body):
        name, arguments = values.get("name"), values.get("arguments", {})
        if isinstance(name, str) and isinstance(arguments, dict):
            return ToolCall(name, arguments)
    return None


def _objects(body: str) -> list[dict[str, Any]]:
    """Return the objects of a body, outer ones before those inside of them."""
    try:
        whole = json.loads(body, parse_float=finite, parse_constant=lambda _: None)
        if "\\u" in body:  # an escape may be half a character
            whole = json.loads(whole_characters(json.dumps(whole, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return [item.values for item in sorted(find_objects(body), key=lambda item: item.start)]
    return [whole] if isinstance(whole, dict) else []


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool's call that is being written.

    call: its number in the answer, from 0. name: the tool's, in the first piece of the call; else None.
    arguments: continues the pieces before; joined they are the JSON of the arguments.
    """

    call: int
    name: str | None
    arguments: str


class CallPieces:
    """Cuts the bodies of calls into pieces while they are written.

    Pieces of a body begin when the tool's name and the bracket of its arguments are there, as the grammar of tools has
    them. A body of another form comes in one piece when it is whole.
    """

    def __init__(self) -> None:
        self._whole = 0  # bodies that are told
        self._number = 0
        self._body: _Body | None = None

    def take(self, bodies: Sequence[str], under_way: str | None) -> list[CallPiece]:
        """Return what is new. bodies: all that are whole. under_way: the one after them, as far as it is there."""
        pieces = []
        for body in bodies[self._whole :]:
            pieces += self._end(body)
            self._whole += 1
        if under_way is not None:
            pieces += self._go_on(under_way.lstrip())
        return pieces

    def _go_on(self, body: str) -> list[CallPiece]:
        opened = self._body is None
        if self._body is None:
            if (head := _CALL_HEAD.match(body)) is None:
                return []
            self._body = _Body(whole_characters(json.loads(head[1])), head.end())
        new = self._body.arguments(body)
        return [CallPiece(self._number, self._body.name if opened else None, new)] if new else []

    def _end(self, body: str) -> list[CallPiece]:
        pieces = self._go_on(body)
        if self._body is None:
            if (call := read_call(body)) is None:
                return []
            pieces = [CallPiece(self._number, call.name, json.dumps(call.arguments, ensure_ascii=False))]
        self._number += 1
        self._body = None
        return pieces


class _Body:
    """A call's body whose arguments begin at `at`; finds where they end."""

    def __init__(self, name: str, at: int) -> None:
        self.name = name
        self._at = at
        self._depth = 0
        self._ended = False
        self._in_string = self._escaped = False

    def arguments(self, body: str) -> str:
        """Return what of the arguments is new in a body."""
        start = self._at
        while self._at < len(body) and not self._ended:
            self._read(body[self._at])
            self._at += 1
        return body[start : self._at]

    def _read(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = char == "\\"
            self._in_string = char != '"'
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._ended = self._depth == 0
