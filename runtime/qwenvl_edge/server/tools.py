"""Tools: a family whose chat template has them may offer them; no family does yet, so here they are refused.

The sentence is one that clients look for to go on without tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenvl_edge.server.errors import ApiError

_FIELDS = (("tools", "tool_choice"), ("functions", "function_call"))
_UNUSED = ("none", "auto", None)


def check_tools(raw: Mapping[str, Any]) -> None:
    """Check that a request wants no tools, by today's fields or by the old ones; offered ones it may leave unused.

    Raises:
        ApiError: it does.
    """
    for offered, choice in _FIELDS:
        wanted = raw.get(choice)
        if raw.get(offered) and wanted != "none":
            raise no_tools(offered, f'leave them out or send "{choice}": "none"')
        if wanted not in _UNUSED:
            raise no_tools(choice, "leave it out")


def no_tools(where: str, remedy: str) -> ApiError:
    """Return the error for a request that needs tools."""
    return ApiError(
        400,
        f"{where}: this model does not support tools; {remedy}, or ask for JSON with response_format.",
        param=where,
        code="unsupported_parameter",
    )
