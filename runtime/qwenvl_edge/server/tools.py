"""Tools of a request -> families.tools.Tools; a model without them refuses in words by which clients go on without.

The old `functions` are refused for the new names; where a request offers tools and wants none of them, they are left
out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_edge.errors import PromptError
from qwenvl_edge.families.tools import AUTO, NONE, ToolCall, Tools
from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.messages import kind_of, no_tools, refused, shortened
from qwenvl_edge.server.schema_messages import ToolCallRecord

_OLD = ("functions", "function_call")
_FIELDS = (("tools", "tool_choice"), _OLD)
_UNUSED = (NONE, AUTO, None)
_DESCRIBED = ("name", "description", "parameters")


def check_tools(raw: Mapping[str, Any], abilities: Abilities) -> None:
    """Check that a request wants no tools that there are not, by today's fields or by the old ones.

    Raises:
        ApiError: it does.
    """
    for offered, choice in _FIELDS:
        wanted = raw.get(choice)
        if abilities.tools and (offered, choice) != _OLD:
            continue
        if raw.get(offered) and wanted != NONE:
            raise _no_tools(offered, choice, abilities)
        if wanted not in _UNUSED:
            raise _no_tools(choice, choice, abilities)


def _no_tools(where: str, choice: str, abilities: Abilities) -> ApiError:
    if abilities.tools:
        raise refused(where, "is the old form of tools and tool_choice; send those")
    return no_tools(where, f'leave them out or send "{choice}": "none"' if where != choice else "leave it out")


def read_tools(tools: Any, choice: Any, *, parallel: bool | None) -> Tools | None:
    """Return the tools of a request; None if it offers none.

    Raises:
        ApiError: one is no function, or the choice is none of them.
    """
    if not tools:
        if choice not in _UNUSED:
            raise refused("tool_choice", "is given without tools; send some")
        return None
    if not isinstance(tools, list):
        raise refused("tools", f"is {kind_of(tools)}; send a list")
    functions = [_function(tool, f"tools.{number}") for number, tool in enumerate(tools)]
    try:
        return Tools.read(functions, AUTO if choice is None else choice, parallel=parallel is not False)
    except PromptError as error:
        param = "tool_choice" if str(error).startswith("tool_choice") else "tools"
        raise ApiError(400, str(error), param=param) from None


def _function(tool: Any, where: str) -> dict[str, Any]:
    """Return a tool's name, description and parameters; what else a client writes there is not for the model."""
    if not isinstance(tool, dict):
        raise refused(where, f"is {kind_of(tool)}; send an object with type and function")
    if (kind := tool.get("type", "function")) != "function":
        raise refused(where, f"is a tool of type {shortened(kind)}; this server has functions only")
    function = tool.get("function", tool)
    if not isinstance(function, dict):
        raise refused(f"{where}.function", f"is {kind_of(function)}; send an object with a name")
    return {name: function[name] for name in _DESCRIBED if function.get(name) is not None}


def earlier_calls(calls: Sequence[ToolCallRecord], where: str) -> list[ToolCall]:
    """Return the calls of an earlier answer. Raises ApiError: the arguments of one are no object."""
    found = []
    for number, call in enumerate(calls):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise refused(f"{where}.{number}.function.arguments", "is no JSON object; send what the answer had")
        found.append(ToolCall(call.function.name, arguments))
    return found
