"""Calls of tools in an answer: read when they are whole, and cut into pieces while they are written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.families.json_places import JsonReader
from qwenvl_edge.families.tools import CALL_TAGS, CallPieces, ToolCall, read_call, written_calls

TEXT = st.text().filter(lambda text: "tool_call" not in text)  # tags are control tokens, which no text becomes
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.builds(ToolCall, TEXT, st.dictionaries(TEXT, JSON, max_size=4)), max_size=3)


def written(call, **options):
    return json.dumps({"name": call.name, "arguments": call.arguments}, **options)


def pieces_of(chunks):
    """What an answer gives that a reader is fed chunk by chunk."""
    reader, pieces = JsonReader(None, CALL_TAGS), CallPieces()
    return [
        piece for chunk in chunks if reader.feed(chunk) is not None for piece in pieces.take(reader.calls, reader.call)
    ]


def joined(pieces):
    """The calls that the pieces make, as a client puts them together."""
    calls = []
    for piece in pieces:
        if piece.name is not None:
            assert piece.call == len(calls)
            calls.append([piece.name, ""])
        calls[piece.call][1] += piece.arguments
    return [ToolCall(name, json.loads(arguments)) for name, arguments in calls]


@given(CALLS, st.booleans(), st.sampled_from([None, 1]), st.data())
def test_pieces_are_the_calls_wherever_the_answer_is_cut(calls, ascii_only, indent, data):
    bodies = [written(call, ensure_ascii=ascii_only, indent=indent) for call in calls]
    chunks = ["Let me see.\n"]
    for body in bodies:
        cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=6)))
        inner = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        chunks += [CALL_TAGS[0], "\n", *inner, "\n", CALL_TAGS[1], "\n"]
    assert joined(pieces_of(chunks)) == calls == [read_call(body) for body in bodies]


def test_arguments_come_as_they_are_written():
    body = written(ToolCall("weather", {"city": 'Bern } \\" {', "days": [1, {"a": 2}]}))
    found = pieces_of([CALL_TAGS[0], "\n", *body, "\n", CALL_TAGS[1]])
    assert found[0].name == "weather" and all(piece.name is None for piece in found[1:])
    assert max(len(piece.arguments) for piece in found) == 1 and len(found) > 40


@pytest.mark.parametrize(
    "body",
    [
        '{"arguments": {"city": "Bern"}, "name": "weather"}',
        "{'name': 'weather', 'arguments': {'city': 'Bern'}}",
        '```json\n{"name": "weather", "arguments": {"city": "Bern",}}\n```',
    ],
)
def test_another_form_of_a_call_comes_whole(body):
    (piece,) = pieces_of([CALL_TAGS[0], *body, CALL_TAGS[1]])
    assert joined([piece]) == [ToolCall("weather", {"city": "Bern"})]


def test_what_names_no_tool_gives_nothing():
    assert pieces_of([CALL_TAGS[0], "12 degrees", CALL_TAGS[1], CALL_TAGS[0], '{"name": "we']) == []


def test_arguments_may_look_like_a_call():
    inner = {"name": "other", "arguments": {"a": 1}}
    assert read_call(json.dumps({"name": "weather", "arguments": inner})) == ToolCall("weather", inner)
    assert read_call("{'name': 'weather', 'arguments': {'name': 'other'}}") == ToolCall("weather", {"name": "other"})


def test_numbers_beyond_floats_stay_json():
    arguments = read_call('{"name": "f", "arguments": {"a": 1e999, "b": [-1e999]}}').arguments
    json.dumps(arguments, allow_nan=False)
    assert arguments["a"] > 1e308 and arguments["b"][0] < -1e308


def test_halves_of_characters_are_replaced():
    body = r'{"name": "a\ud800", "arguments": {"\udfff": "\ud83d\ude00"}}'
    call = ToolCall("a\ufffd", {"\ufffd": "\U0001f600"})
    assert read_call(body) == call
    (piece,) = CallPieces().take([body], None)
    assert piece.name == call.name
    written_calls([call]).encode()


def test_numbers_of_more_digits_than_python_reads_are_numbers():
    call = read_call(f'{{"name": "f", "arguments": {{"a": {"9" * 5000}}}}}')
    assert call.arguments["a"] > 1e308
