"""The messages of a request before they are validated: counted, and parts that are not known named with a remedy."""

from __future__ import annotations

from typing import Any

from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.tools import no_tools

_PARTS_PER_PICTURE = 16  # words around it
_PICTURE = 'send {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}}'
_WORDS = 'send {"type": "text", "text": "..."}'
_INSTEAD = {
    "input_image": _PICTURE,
    "image": _PICTURE,
    "image_data": _PICTURE,
    "image_file": _PICTURE,
    "input_text": _WORDS,
    "output_text": _WORDS,
    "refusal": "it belongs into a message of the assistant",
    "video_url": "the server takes no videos; send single frames as image_url",
    "video": "the server takes no videos; send single frames as image_url",
    "input_audio": "the server takes no audio",
    "audio_url": "the server takes no audio",
    "audio": "the server takes no audio",
    "file": "the server takes no files; send pictures as image_url",
    "input_file": "the server takes no files; send pictures as image_url",
    "document": "the server takes no files; send pictures as image_url",
}
_KNOWN = {
    "system": ("text",),
    "developer": ("text",),
    "user": ("text", "image_url"),
    "assistant": ("text", "refusal"),
}
_TOOL_ROLES = ("tool", "function")


def check_messages(messages: Any, limits: ServerLimits) -> None:
    """Check number and kinds of messages and their parts; the rest is the schema's.

    Raises:
        ApiError: there are too many, or one is not known; names it, and what to send instead.
    """
    if not isinstance(messages, list):
        raise refused("messages", "is missing" if messages is None else "is no list; send a list of messages")
    if len(messages) > limits.messages:
        raise refused("messages", f"has {len(messages):,} items: {len(messages)} messages, more than {limits.messages}")
    pictures = 0
    for number, message in enumerate(messages):
        pictures += _check_message(message, f"messages.{number}", limits)
    if pictures > limits.pictures:
        raise ApiError(
            400, f"the request has {pictures} pictures, more than {limits.pictures}; send fewer.", param="messages"
        )


def _check_message(message: Any, where: str, limits: ServerLimits) -> int:
    """Check one message; return its number of pictures."""
    if not isinstance(message, dict):
        raise refused(where, f"is {kind_of(message)}; send an object with role and content")
    role = message.get("role")
    if role in _TOOL_ROLES or any(message.get(each) for each in ("tool_calls", "function_call", "tool_call_id")):
        raise no_tools(where, "leave tool calls and their results out of the conversation")
    if not isinstance(role, str) or role not in _KNOWN:
        shown = "no role" if role is None else f"the role {shortened(role)}"
        raise refused(where, f"has {shown}; there are {', '.join(_KNOWN)}")
    content = message.get("content")
    if content is None and role != "assistant":
        raise refused(f"{where}.content", "is missing; send words or a list of parts")
    if content is not None and not isinstance(content, (str, list)):
        raise refused(f"{where}.content", f"is {kind_of(content)}; send words or a list of parts")
    parts = content if isinstance(content, list) else []
    most = max(limits.pictures, 1) * _PARTS_PER_PICTURE
    if len(parts) > most:
        raise refused(f"{where}.content", f"has {len(parts):,} parts, more than {most}; join the words")
    return sum(_check_part(part, role, f"{where}.content.{number}") for number, part in enumerate(parts))


def _check_part(part: Any, role: str, where: str) -> bool:
    """Check one part; return whether it is a picture."""
    if not isinstance(part, dict):
        raise refused(where, f"is {kind_of(part)}; send an object with a type, such as {_WORDS[5:]}")
    kind, known = part.get("type"), _KNOWN[role]
    if kind is None:
        raise refused(where, f"is a part without a type; {_PICTURE if 'image_url' in part else _WORDS}")
    if kind not in known:
        remedy = _INSTEAD.get(kind) if isinstance(kind, str) else None
        if kind == "image_url":
            remedy = "pictures belong into a message of the user"
        raise refused(
            where,
            f"is a part of type {shortened(kind)}, which {_article(role)} message cannot have; "
            + (remedy or f"there are {', '.join(known)}"),
        )
    return bool(kind == "image_url")


def _article(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"


def refused(where: str, reason: str) -> ApiError:
    """Return the error of a part of a request: its place in dots, and the reason as a clause."""
    return ApiError(400, printable(f"{where} {reason}."), param=printable(where) or None)


def kind_of(value: Any) -> str:
    """Name a JSON value's type, with its article."""
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "something else")


def shortened(value: Any) -> str:
    """Show a client's value in a message."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else kind_of(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    """Return text of a client's fit for a JSON answer."""
    return text.encode(errors="replace").decode()[:500]
