"""Objects of a JSON Schema are closed where it does not say otherwise."""

import json

import pytest

from qwenvl_edge import Constraint
from qwenvl_edge.constraints.closed import closed
from qwenvl_edge.errors import PromptError

llguidance = pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
NUMBER = {"type": "integer"}


class Bytes:
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text):
        return list(text.encode() if isinstance(text, str) else text)


VOCABULARY = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), n_vocab=257, eos_token=[256])


def accepts(schema, value):
    """Whether an answer held to the schema could be `value`, its keys in this order."""
    source = Constraint.json(schema).source
    grammar = llguidance.LLMatcher.grammar_from_json_schema(source, overrides={"whitespace_flexible": False})
    matcher = llguidance.LLMatcher(VOCABULARY, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    text = json.dumps(value, separators=(",", ":")).encode()
    return matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting()


def test_a_plain_object_has_the_keys_that_it_names():
    schema = {"type": "object", "properties": {"a": NUMBER}, "required": ["a"]}
    assert accepts(schema, {"a": 1}) and not accepts(schema, {"a": 1, "b": 2})
    assert accepts({**schema, "additionalProperties": True}, {"a": 1, "b": 2})
    assert accepts({**schema, "additionalProperties": NUMBER}, {"a": 1, "b": 2})
    assert not accepts({**schema, "additionalProperties": NUMBER}, {"a": 1, "b": "c"})
    assert accepts({"type": "object"}, {"any": 1})


def test_objects_inside_are_closed_too():
    inner = {"type": "object", "properties": {"a": NUMBER}}
    for schema, wrap in (
        ({"type": "array", "items": inner}, lambda value: [value]),
        ({"type": "object", "properties": {"x": inner}}, lambda value: {"x": value}),
        ({"anyOf": [NUMBER, inner]}, lambda value: value),
        ({"$ref": "#/$defs/Inner", "$defs": {"Inner": inner}}, lambda value: value),
        ({"allOf": [{"$ref": "#/$defs/Inner"}], "$defs": {"Inner": inner}}, lambda value: value),
        ({"type": "object", "additionalProperties": inner}, lambda value: {"k": value}),
    ):
        assert accepts(schema, wrap({"a": 1})) and not accepts(schema, wrap({"a": 1, "b": 2})), schema


def test_schemas_that_hold_together_do_not_exclude_each_others_keys():
    base = {"type": "object", "properties": {"a": NUMBER}, "required": ["a"]}
    more = {"type": "object", "properties": {"b": NUMBER}, "required": ["b"]}
    definitions = {"$defs": {"Base": base}}
    for schema in (
        {"allOf": [base, more]},
        {"allOf": [{"$ref": "#/$defs/Base"}, more], **definitions},
        {"properties": {"b": NUMBER}, "required": ["b"], "allOf": [{"$ref": "#/$defs/Base"}], **definitions},
    ):
        assert accepts(schema, {"a": 1, "b": 2}) or accepts(schema, {"b": 2, "a": 1}), schema
        assert not accepts(schema, {"a": 1, "b": 2, "c": 3}) and not accepts(schema, {"b": 2, "a": 1, "c": 3}), schema
    # The same definition alone is closed.
    alone = {"type": "object", "properties": {"x": {"$ref": "#/$defs/Base"}}, **definitions}
    assert not accepts(alone, {"x": {"a": 1, "b": 2}})


def test_definitions_that_name_themselves():
    node = {"type": "object", "properties": {"v": NUMBER, "next": {"$ref": "#/$defs/Node"}}, "required": ["v"]}
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    assert accepts(schema, {"v": 1, "next": {"v": 2}}) and not accepts(schema, {"v": 1, "next": {"v": 2, "w": 3}})
    both = {"allOf": [{"$ref": "#/$defs/Node"}, {"properties": {"w": NUMBER}}], "$defs": {"Node": node}}
    assert accepts(both, {"v": 1, "next": {"v": 2}})


def test_the_schema_that_was_given_is_left_as_it_is():
    schema = {"type": "object", "properties": {"a": {"properties": {"b": NUMBER}}}}
    before = json.dumps(schema)
    closed(schema)
    assert json.dumps(schema) == before


@pytest.mark.parametrize("schema", [[], "{}", 5])
def test_what_is_no_schema(schema):
    with pytest.raises(PromptError, match="give a dict"):
        Constraint.json(schema)


def test_a_schema_without_end():
    deep = {"type": "integer"}
    for _ in range(100_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(PromptError, match="too deeply"):
        Constraint.json(deep)
