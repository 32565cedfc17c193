"""Items of the Responses protocol -> the messages of a chat request."""

from __future__ import annotations

from typing import Any

from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.messages import kind_of, no_tools, refused, shortened
from qwenvl_edge.server.settings import ServerLimits

_TOOL_ITEMS = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")
_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_AS_IN_CHAT = ("image_url", "video_url", "video")
_FIELDS = frozenset({"type", "role", "content", "id", "status", "phase", "qwenvl"})


def messages_of(given: str | list[Any], limits: ServerLimits, abilities: Abilities) -> list[dict[str, Any]]:
    """Return the messages of an input; a call joins the message of the assistant before it. Raises ApiError."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if len(given) >= limits.messages:
        raise refused("input", f"has {len(given)} items, more than {limits.messages - 1}")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        where = f"input.{number}"
        if not isinstance(item, dict):
            raise refused(where, f"is {kind_of(item)}; send a message with role and content")
        match item.get("type") or "message":
            case "message":
                messages.append(_message(item, where))
            case "reasoning":  # it is left out of prompts
                continue
            case kind if kind in _TOOL_ITEMS and not abilities.tools:
                raise no_tools(where, "leave tool calls and their results out of the input")
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                if not messages[-1].get("qwenvl"):  # whose text has the calls already
                    messages[-1].setdefault("tool_calls", []).append(_call(item))
            case "function_call_output":
                content = _content(item.get("output"), f"{where}.output")
                messages.append({"role": "tool", "content": content, "tool_call_id": item.get("call_id")})
            case kind:
                raise refused(
                    where, f"is an item of type {shortened(kind)}, which this server does not know; send messages"
                )
    return messages


def chat_tool(tool: Any, where: str) -> Any:
    """Return a tool as chat completions describe it."""
    if not isinstance(tool, dict) or "function" in tool or tool.get("type") != "function":
        return tool  # whose mistakes are told there
    if not isinstance(tool.get("name"), str):
        raise refused(f"{where}.name", "is missing; give the function's name")
    return {"type": "function", "function": {name: each for name, each in tool.items() if name != "type"}}


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    if unknown := sorted(item.keys() - _FIELDS):
        raise refused(f"{where}.{unknown[0]}", "is a field that this server does not know; leave it out")
    message = {"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")}
    return {**message, "qwenvl": item["qwenvl"]} if item.get("qwenvl") else message


def _call(item: dict[str, Any]) -> dict[str, Any]:
    return {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": item.get("arguments")}}


def _content(content: Any, where: str) -> Any:
    if isinstance(content, list):
        return [_part(part, f"{where}.{number}") for number, part in enumerate(content)]
    return content


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_image":
        url = part.get("image_url")
        if part.get("file_id") is not None or not isinstance(url, str):
            raise refused(where, "is an input_image without image_url; send it as a data: URI, no files are stored")
        limits = {name: part[name] for name in ("min_pixels", "max_pixels") if name in part}
        return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail")}, **limits}
    if isinstance(kind, str) and kind in _PARTS:
        name = _PARTS[kind]
        return {"type": name, name: part.get(name)}
    if isinstance(kind, str) and kind in _AS_IN_CHAT:
        return dict(part)
    if not isinstance(part, dict):
        raise refused(where, f"is {kind_of(part)}; send an object with a type")
    raise ApiError(
        400,
        f"{where} is a part of type {shortened(kind)}, which is not taken; send input_text or input_image.",
        param=where,
    )
