"""The end of a cut form is the same wherever it is sought: in this process or in another one."""

import json
import subprocess
import sys

import pytest

from qwenvl_edge import Constraint
from qwenvl_edge.constraints import trial
from qwenvl_edge.constraints.ending import Ending, find_end
from qwenvl_edge.constraints.matcher import MatcherFactory
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.patience import PATIENCE_S
from support.scripted import family_of
from support.vocabularies import full_vocabulary

pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "tags": {"type": "array", "items": {"enum": ["红色", "blue"]}, "minItems": 2},
        "at": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    },
    "required": ["name", "tags", "at"],
}
FORMS = {
    "json": (Constraint.json(SCHEMA), '{"name":"Ada","tags":["红色","blue"],"at":"2024-05"}'),
    "mails and times": (
        Constraint.json(
            {
                "type": "array",
                "minItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "to": {"type": "string", "format": "email"},
                        "at": {"type": "string", "format": "date-time"},
                    },
                    "required": ["to", "at"],
                },
            }
        ),
        "[" + ",".join(['{"to":"ann@lee.org","at":"2024-05-06T07:08:09Z"}'] * 3) + "]",
    ),
    "regex": (Constraint.regex(r"[A-Z]{2,4}-\d{3}(狗|\.)"), "AB-123狗"),
    "choice": (Constraint.choice(["yes 狗", "no 红色"]), "no 红色"),
}


@pytest.fixture(scope="module")
def process():
    command = [sys.executable, trial.__file__, "512", "10"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as begun:
        assert json.loads(begun.stdout.readline()) == {}
        yield begun
        begun.stdin.close()
        assert begun.wait(PATIENCE_S) == 0


def elsewhere(process):
    """A Seek that asks the process."""

    def seek(ending):
        process.stdin.write(json.dumps({"ending": ending.as_record()}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())["ids"]

    return seek


def full_factory():
    family = family_of(151643)
    tokenizer = Tokenizer(full_vocabulary(), family.special_tokens)
    return MatcherFactory(family, tokenizer), tokenizer


@pytest.mark.parametrize("name", FORMS)
def test_an_end_is_the_same_in_another_process(process, name):
    constraint, text = FORMS[name]
    factory, tokenizer = full_factory()
    tokens = tokenizer.encode(text)
    for cut in range(1, len(tokens)):
        matcher = factory.start(constraint)
        for token in tokens[:cut]:
            matcher.take(token)
        found = matcher.closing(elsewhere(process))
        assert found and found == matcher.closing()
        for token in found:
            matcher.take(token)
        said = tokenizer.decode_bytes([*tokens[:cut], *found]).decode()
        assert matcher.is_whole(said)
        matcher.release()


def test_control_tokens_are_taken_over_and_found(process):
    factory, tokenizer = full_factory()
    matcher = factory.start(Constraint.boxes())
    tags = family_of(151643).special_tokens
    for token in (tags["<ref>"], *tokenizer.encode("the dog"), tags["</ref>"], tags["<box>"], *tokenizer.encode("(1")):
        matcher.take(token)
    found = matcher.closing(elsewhere(process))
    assert found == matcher.closing() and found[-1] == tags["</box>"]
    for token in found:
        matcher.take(token)
    assert matcher.closing() == []


def test_a_form_or_an_answer_that_cannot_be_has_no_end(process):
    factory, tokenizer = full_factory()
    told = []
    factory.start(Constraint.regex("ab")).closing(lambda ending: told.append(ending) or [])
    (ending,) = told
    for wrong in (
        Ending("no grammar", ending.taken, ending.alphabet),
        Ending(ending.grammar, (*tokenizer.encode("x"),), ending.alphabet),
    ):
        assert find_end(wrong) == elsewhere(process)(wrong) == []
    assert elsewhere(process)(ending) == tokenizer.encode("a") + tokenizer.encode("b")
    assert Ending.of_record(json.loads(json.dumps(ending.as_record()))) == ending


def test_one_schema_more_takes_no_other_process_along(process):
    """A form that is too far from its end leaves the process as it was."""
    far = {"type": "null"}
    for _ in range(3):
        far = {"type": "array", "minItems": 1000, "items": far}
    matcher = full_factory()[0].start(Constraint.json(far))
    assert matcher.closing(elsewhere(process)) == []
    assert process.poll() is None
