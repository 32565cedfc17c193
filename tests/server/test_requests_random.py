"""Requests of any kind become a record or one sentence: found by a generator, not by a list; longer in `make fuzz`."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_edge.constraints.closed import closed
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.server.abilities import Abilities
from qwenvl_edge.server.chat import read_chat
from qwenvl_edge.server.completions import read_completion
from qwenvl_edge.server.errors import ApiError
from qwenvl_edge.server.forms import given_form, made
from qwenvl_edge.server.intake import _object
from qwenvl_edge.server.reasoning import thinking_budget
from qwenvl_edge.server.responses import ResponsesRequest, read_response
from qwenvl_edge.server.schema import LABELS, ChatRequest
from qwenvl_edge.server.settings import ServerLimits
from qwenvl_edge.server.tools import read_tools

LIMITS = ServerLimits()
ALL, NONE = Abilities(tools=True, reasons=True, clips=True, sizes=True), Abilities()
SECONDS = 5.0
WORDS = st.sampled_from(
    [
        *("user", "assistant", "system", "tool", "text", "image_url", "input_image", "input_text", "json_schema"),
        *("json_object", "data:,x", "", "a", "\ud800", "none", "auto", "required", "message", "url", "type", "content"),
    ]
)
FIELDS = st.sampled_from(sorted({*ChatRequest.model_fields, *ResponsesRequest.model_fields, *LABELS, "max_token"}))
NAMES = WORDS | FIELDS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)
PARTS = st.fixed_dictionaries({"type": WORDS}, optional={"text": VALUES, "image_url": VALUES, "refusal": VALUES})
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": WORDS}, optional={"content": VALUES | st.lists(PARTS, max_size=3), "name": VALUES})
    | VALUES,
    max_size=4,
)
REQUESTS = st.builds(
    lambda known, other, messages: {"model": "nano", "messages": messages, "input": messages, **known, **other},
    st.dictionaries(FIELDS, VALUES, max_size=3),
    st.dictionaries(st.text(max_size=5) | NAMES, VALUES, max_size=1),
    MESSAGES,
)
RANDOM = settings(deadline=None, suppress_health_check=list(HealthCheck))


def understood(read, raw):
    """Read a request; whatever is wrong with it is said in one sentence that JSON can hold."""
    started = time.monotonic()
    try:
        return read(raw)
    except ApiError as error:
        assert error.status == 400
        message, param = error.body["error"]["message"], error.body["error"]["param"]
        assert message.endswith((".", ")")) and "\n" not in message and "Traceback" not in message
        assert len(message) <= 520 and (param is None or len(param) <= 520)
        json.dumps(error.body).encode()
    except QwenVLError as error:
        assert str(error).endswith(".")
    finally:
        assert time.monotonic() - started < SECONDS
    return None


@RANDOM
@given(REQUESTS, st.sampled_from([ALL, NONE]))
def test_chat(raw, abilities):
    request = understood(lambda raw: read_chat(raw, LIMITS, abilities), raw)
    if request is not None:
        given = understood(given_form, request)
        if given is not None:
            understood(lambda it: made(*it), given)
        understood(lambda request: thinking_budget(request, abilities, 64), request)
        if abilities.tools:
            understood(lambda it: read_tools(it.tools, it.tool_choice, parallel=it.parallel_tool_calls), request)


@RANDOM
@given(REQUESTS, st.sampled_from([ALL, NONE]))
def test_responses(raw, abilities):
    for name in ("messages", "prompt"):
        raw.pop(name, None)
    understood(lambda raw: read_response(raw, LIMITS, abilities, lambda _: []), raw)


@RANDOM
@given(REQUESTS, VALUES)
def test_completions(raw, prompt):
    for name in ("messages", "input"):
        raw.pop(name, None)
    understood(read_completion, {**raw, "prompt": prompt})


@RANDOM
@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_bodies(data):
    found = understood(_object, data)
    assert found is None or isinstance(found, dict)


@RANDOM
@given(st.dictionaries(NAMES | st.sampled_from(["properties", "$ref", "allOf", "anyOf", "$defs", "items"]), VALUES))
def test_schemas_of_any_shape_are_closed(schema):
    before = repr(schema)
    assert isinstance(closed(schema), dict) and repr(schema) == before


@pytest.mark.parametrize("body", [b"[" * 10**6, b'{"a":' * 10**5, b"{" + b'"a":[' * 49_000, b'"' + b"\\u0041" * 10**6])
def test_bodies_without_end(body):
    assert understood(_object, body) is None
