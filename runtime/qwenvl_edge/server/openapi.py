"""The server's own description, GET /openapi.json: bodies and answers that the routes handle themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from qwenvl_edge.server.completions import CompletionRequest
from qwenvl_edge.server.responses import ResponsesRequest
from qwenvl_edge.server.schema import ChatRequest

_PREFIX = "#/components/schemas/"
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_MODEL_LIST: dict[str, Any] = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}
_BOX: dict[str, Any] = {
    "type": "object",
    "required": ["label", "x1", "y1", "x2", "y2", "image"],
    "properties": {
        "label": {"type": "string"},
        **{name: {"type": "number"} for name in ("x1", "y1", "x2", "y2")},
        "image": {"type": "integer"},
    },
}
_TOKEN: dict[str, Any] = {
    "type": "object",
    "required": ["token", "logprob", "bytes"],
    "properties": {
        "token": {"type": "string"},
        "logprob": {"type": "number", "maximum": 0},
        "bytes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
    },
}
_SCORED_TOKEN = {
    **_TOKEN,
    "required": [*_TOKEN["required"], "top_logprobs"],
    "properties": {**_TOKEN["properties"], "top_logprobs": {"type": "array", "items": _TOKEN}},
}
_LOGPROBS: dict[str, Any] = {
    "type": "object",
    "required": ["content"],
    "properties": {"content": {"type": "array", "items": _SCORED_TOKEN}},
}
_COMPLETION: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "message", "finish_reason"],
                "properties": {
                    "index": {"const": 0},
                    "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
                    "logprobs": {"anyOf": [{"type": "null"}, _LOGPROBS]},
                    "message": {
                        "type": "object",
                        "required": ["role", "content", "qwenvl"],
                        "properties": {
                            "role": {"const": "assistant"},
                            "content": {"type": ["string", "null"]},
                            "reasoning_content": {"type": "string"},
                            "tool_calls": {"type": "array", "items": {"type": "object"}},
                            "qwenvl": {
                                "type": "object",
                                "required": ["raw_text", "boxes", "quads"],
                                "properties": {
                                    "raw_text": {"type": "string"},
                                    "complete": {"type": ["boolean", "null"]},
                                    "boxes": {"type": "array", "items": _BOX},
                                    "quads": {"type": "array", "items": {"type": "object"}},
                                },
                            },
                        },
                    },
                },
            },
        },
        "usage": {"type": "object"},
    },
}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _json({"$ref": f"{_PREFIX}Error"}, "An error") for status in statuses}


_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}
_REFUSED = _errors(401, 403)
HEALTH: dict[str, Any] = {
    "summary": "Whether the process is alive",
    "responses": {200: _json(_STATUS, "It is"), **_errors(403)},
}
READY: dict[str, Any] = {
    "summary": "Whether requests are taken",
    "responses": {200: _json(_STATUS, "They are"), 503: _json(_STATUS, "They are not"), **_errors(403)},
}
METRICS: dict[str, Any] = {
    "summary": "Figures for Prometheus",
    "responses": {200: {"description": "Text format 0.0.4", "content": {"text/plain": {}}}, **_REFUSED},
}
MODELS: dict[str, Any] = {
    "summary": "The models, of which there is one",
    "responses": {200: _json(_MODEL_LIST, "A list"), **_REFUSED},
}
MODEL: dict[str, Any] = {
    "summary": "One model",
    "responses": {200: _json(_MODEL, "The model"), **_REFUSED, **_errors(404)},
}
CHAT: dict[str, Any] = {
    "summary": "Continue a conversation about pictures",
    "responses": {
        200: {
            "description": "The answer, as a whole or as events",
            "content": {"application/json": {"schema": _COMPLETION}, "text/event-stream": {}},
        },
        **_REFUSED,
        **_errors(400, 404, 408, 413, 415, 429, 500, 503),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"{_PREFIX}ChatRequest"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["request"],
                        "properties": {"request": {"type": "string"}},
                        "additionalProperties": {"type": "string", "format": "binary"},
                    }
                },
            },
        }
    },
}


def _body(name: str) -> dict[str, Any]:
    schema = {"schema": {"$ref": f"{_PREFIX}{name}"}}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


COMPLETION: dict[str, Any] = {
    "summary": "Continue a text without a chat template",
    "responses": {
        200: {
            "description": "The answer, as a whole or as events",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        },
        **_REFUSED,
        **_errors(400, 404, 408, 413, 415, 429, 500, 503),
    },
    "openapi_extra": _body("CompletionRequest"),
}
RESPONSE: dict[str, Any] = {
    **COMPLETION,
    "summary": "Continue a conversation, in the Responses protocol",
    "openapi_extra": _body("ResponsesRequest"),
}


def describe(api: FastAPI, model_name: str) -> None:
    """Add the schemas that the routes refer to, the model's name and the key to what FastAPI makes of the routes."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = plain()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = _ERROR
            for record in (ChatRequest, CompletionRequest, ResponsesRequest):
                request = record.model_json_schema(ref_template=_PREFIX + "{model}")
                request["properties"]["model"] = {"const": model_name}
                schemas |= {**request.pop("$defs"), record.__name__: request}
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}, {}]
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]
