"""Things given by others, for messages: values and names, shortened, and addresses where a file is expected."""

from __future__ import annotations

import os
import re
from typing import Any

# At least two letters: C: is a drive. One slash may be missing, because Path turns // into /.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/{0,2})(?=[^/]|/)")
_SHOWN = 80  # characters of a name or a value
_BEGIN = 30  # of them of a long name's begin; the others are of its end


def url_of(path: str | os.PathLike[str]) -> str | None:
    """Return the URL that a path is, with the slash that Path drops; None: it is a path."""
    text = os.fspath(path)
    found = _SCHEME.match(text) if isinstance(text, str) else None
    if found is None:
        return None
    scheme, slashes = found.groups()
    return f"{scheme}://{text[found.end() :]}" if slashes == "/" else text


def shown(name: object) -> str:
    """Return a name for a message; of a long one the begin and the end, which of a path is the file's name."""
    text = str(name)
    return text if len(text) <= _SHOWN else f"{text[:_BEGIN]}...{text[_BEGIN - _SHOWN :]}"


def show(value: Any) -> str:
    """Return a value for a message: its repr, shortened; its type where it has none."""
    try:
        words = repr(value)
    except Exception:  # also of an int with more digits than Python writes
        return f"of type {type(value).__name__}"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
