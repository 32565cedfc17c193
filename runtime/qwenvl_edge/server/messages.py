"""The messages of a request before they are validated: counted, and parts that are not known named with a remedy."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.settings import ServerLimits

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
    "video_url": "this model takes no videos; send single frames as image_url",
    "video": "this model takes no videos; send single frames as image_url",
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
_CLIPS = ("video_url", "video")
_CALLS = ("tool_calls", "function_call", "tool_call_id")


def check_messages(messages: Any, limits: ServerLimits, abilities: Abilities) -> None:
    """Check number and kinds of messages and their parts; the rest is the schema's.

    Raises:
        ApiError: there are too many, or one is not known; names it, and what to send instead.
    """
    if not isinstance(messages, list):
        raise refused("messages", "is missing" if messages is None else "is no list; send a list of messages")
    if len(messages) > limits.messages:
        raise refused("messages", f"has {len(messages):,} items: {len(messages)} messages, more than {limits.messages}")
    kinds: Counter[str] = Counter()
    for number, message in enumerate(messages):
        kinds.update(_check_message(message, f"messages.{number}", limits, abilities))
    clips = sum(kinds[kind] for kind in _CLIPS)
    for many, name, most in ((kinds["image_url"], "pictures", limits.pictures), (clips, "clips", limits.clips)):
        if many > most:
            raise ApiError(400, f"the request has {many} {name}, more than {most}; send fewer.", param="messages")


def _check_message(message: Any, where: str, limits: ServerLimits, abilities: Abilities) -> list[str]:
    """Check one message; return the types of its parts."""
    if not isinstance(message, dict):
        raise refused(where, f"is {kind_of(message)}; send an object with role and content")
    role, known = message.get("role"), _known(abilities)
    if not abilities.tools and (role in ("tool", "function") or any(message.get(each) for each in _CALLS)):
        raise no_tools(where, "leave tool calls and their results out of the conversation")
    if not isinstance(role, str) or role not in known:
        shown = "no role" if role is None else f"the role {shortened(role)}"
        raise refused(where, f"has {shown}; there are {', '.join(known)}")
    content = message.get("content")
    if content is None and role != "assistant":
        raise refused(f"{where}.content", "is missing; send words or a list of parts")
    if content is not None and not isinstance(content, (str, list)):
        raise refused(f"{where}.content", f"is {kind_of(content)}; send words or a list of parts")
    parts = content if isinstance(content, list) else []
    most = max(limits.pictures, 1) * _PARTS_PER_PICTURE
    if len(parts) > most:
        raise refused(f"{where}.content", f"has {len(parts):,} parts, more than {most}; join the words")
    return [_check_part(part, role, known[role], f"{where}.content.{number}") for number, part in enumerate(parts)]


def _known(abilities: Abilities) -> dict[str, tuple[str, ...]]:
    """Return the types of parts that the messages of each role may have."""
    known = {**_KNOWN, "user": (*_KNOWN["user"], *_CLIPS)} if abilities.clips else _KNOWN
    return {**known, "tool": ("text",)} if abilities.tools else known


def _check_part(part: Any, role: str, known: tuple[str, ...], where: str) -> str:
    """Check one part; return its type."""
    if not isinstance(part, dict):
        raise refused(where, f"is {kind_of(part)}; send an object with a type, such as {_WORDS[5:]}")
    kind = part.get("type")
    if kind is None:
        raise refused(where, f"is a part without a type; {_PICTURE if 'image_url' in part else _WORDS}")
    if not isinstance(kind, str) or kind not in known:
        remedy = _INSTEAD.get(kind) if isinstance(kind, str) else None
        if kind == "image_url":
            remedy = "pictures belong into a message of the user"
        raise refused(
            where,
            f"is a part of type {shortened(kind)}, which {_article(role)} message cannot have; "
            + (remedy or f"there are {', '.join(known)}"),
        )
    return kind


def no_tools(where: str, remedy: str) -> ApiError:
    """Return the error for a request that needs tools, in words by which clients go on without."""
    return ApiError(
        400,
        f"{where}: this model does not support tools; {remedy}, or ask for JSON with response_format.",
        param=where,
        code="unsupported_parameter",
    )


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
    if isinstance(value, (bool, type(None))):
        return json.dumps(value)
    text = repr(value) if isinstance(value, (str, int, float)) else kind_of(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    """Return text of a client's fit for a JSON answer."""
    return text.encode(errors="replace").decode()[:500]
