"""Answers that keep to a form: the scripted model wants something else and is held to it."""

import json
import re
import resource
import sys
import time

import numpy as np
import pytest

from qwenvl_edge import CancelToken, Constraint
from qwenvl_edge.constraints.matcher import Matcher, MatcherFactory
from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.scripted import decode, engine, family_of, ids
from support.vocabularies import full_vocabulary

pytest.importorskip("llguidance", reason="constraints need the extra 'constrained'")
RED = np.full((20, 40, 3), (255, 0, 0), np.uint8)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
CHATTER = ids("I would rather tell you a story about it. " * 30)


def random_answer(tmp_path, constraint, seed, **options):
    """An answer of a model that has no opinion at all: every token is as likely as any other."""
    qwen, backend = engine(tmp_path, CHATTER)
    backend.runner_up = 0  # the script is not followed
    backend._logits = lambda places: np.zeros((1, len(places), backend.model.vocab_size), np.float32)
    options = {"max_new_tokens": 300, "do_sample": True, "seed": seed, **options}
    return qwen.chat("hi", images=[RED], constraint=constraint, **options)


@pytest.mark.parametrize("seed", range(12))
def test_json(tmp_path, seed):
    reply = random_answer(tmp_path, Constraint.json(SCHEMA), seed)
    value = json.loads(reply.raw_text)
    assert reply.finish_reason == "stop" and set(value) == {"colour", "count"}
    assert value["colour"] in ("red", "blue") and 0 <= value["count"] <= 99
    assert " " not in reply.raw_text


@pytest.mark.parametrize("seed", range(6))
def test_regular_expressions(tmp_path, seed):
    reply = random_answer(tmp_path, Constraint.regex(r"[A-Z]{2,4}-\d{3}(狗|\.)"), seed)
    assert reply.finish_reason == "stop" and re.fullmatch(r"[A-Z]{2,4}-\d{3}(狗|\.)", reply.raw_text)


def test_grammars_of_llama_cpp(tmp_path):
    grammar = 'root ::= "I have " number " " ("cats" | "dogs")\nnumber ::= [1-9] [0-9]?  # two digits'
    for seed in range(10):
        text = random_answer(tmp_path, Constraint.gbnf(grammar), seed).raw_text
        assert re.fullmatch("I have [1-9][0-9]? (cats|dogs)", text)


def test_choices(tmp_path):
    choices = ["yes", "no", 'he said "maybe"\\', "红色", "a <box> of them"]
    found = {random_answer(tmp_path, Constraint.choice(choices), seed).raw_text for seed in range(40)}
    assert found <= set(choices) and len(found) > 1
    for choice in choices:
        assert random_answer(tmp_path, Constraint.choice([choice]), 0).raw_text == choice


@pytest.mark.parametrize("seed", range(8))
def test_boxes_only(tmp_path, seed):
    reply = random_answer(tmp_path, Constraint.boxes(), seed, max_new_tokens=200)
    # Nothing but labels and boxes.
    assert reply.boxes and reply.malformed == ()
    assert all(0 <= value <= 40 for box in reply.boxes for value in (box.x1, box.x2))


def test_the_likeliest_of_what_is_allowed_is_taken(tmp_path):
    qwen, backend = engine(tmp_path, CHATTER)
    backend.runner_up = ids("no")[0]
    assert qwen.chat("hi", constraint=Constraint.choice(["yes", "no"])).raw_text == "no"


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_cut_answer_is_reported_and_closed(tmp_path, limit):
    reply = random_answer(tmp_path, Constraint.json(SCHEMA), 1, max_new_tokens=limit)
    whole = random_answer(tmp_path, Constraint.json(SCHEMA), 1)
    assert (reply.finish_reason, reply.stats.new_tokens) == ("length", limit)
    assert limit < whole.stats.new_tokens
    value = json.loads(reply.raw_text)
    assert value["colour"] in ("red", "blue") and 0 <= value["count"] <= 99
    assert whole.finish_reason == "stop" and json.loads(whole.raw_text)


CUT = [
    (Constraint.json(), lambda text: isinstance(json.loads(text), dict)),
    (Constraint.json({"type": "array", "items": SCHEMA, "minItems": 2}), lambda text: json.loads(text)[1]["colour"]),
    (Constraint.regex(r"[A-Z]{2,4}-\d{3}(狗|\.)"), re.compile(r"[A-Z]{2,4}-\d{3}(狗|\.)").fullmatch),
    (Constraint.regex('(")*x'), lambda text: text.endswith("x")),  # the most welcome id leads nowhere
    (Constraint.choice(["yes 狗", "no 红色"]), ["yes 狗", "no 红色"].count),
    (
        Constraint.json({"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 4}),
        lambda text: len(json.loads(text)) >= 4,
    ),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("constraint", "holds"), CUT, ids=["any", "array", "regex", "loop", "choice", "times"])
def test_forms_are_closed_wherever_they_are_cut(tmp_path, constraint, holds, seed):
    for limit in range(1, 9):
        reply = random_answer(tmp_path, constraint, seed, max_new_tokens=limit)
        assert reply.stats.new_tokens <= limit and holds(reply.raw_text)


def test_boxes_are_closed_too(tmp_path):
    for limit in range(1, 30):
        reply = random_answer(tmp_path, Constraint.boxes(), limit, max_new_tokens=limit)
        assert reply.boxes and not reply.malformed


def test_a_cancelled_answer_is_closed_and_streamed_so(tmp_path):
    qwen, backend = engine(tmp_path, CHATTER)
    backend.runner_up = 0
    with qwen.stream("hi", constraint=Constraint.json(SCHEMA)) as stream:
        pieces = [next(stream)]
        stream.cancel()
        pieces += stream
    assert stream.reply.finish_reason == "cancelled" and "".join(pieces) == stream.reply.text
    assert set(json.loads(stream.reply.raw_text)) == {"colour", "count"}


def test_nothing_is_closed_that_was_not_begun_or_ends_as_wanted(tmp_path):
    qwen, _ = engine(tmp_path, CHATTER, CHATTER)
    token = CancelToken()
    token.cancel()
    assert qwen.chat("hi", constraint=Constraint.json(SCHEMA), cancel=token).raw_text == ""
    reply = random_answer(tmp_path, Constraint.json(SCHEMA), 1, stop=["our"])
    assert (reply.raw_text, reply.finish_reason) == ('{"col', "stop_string")


TWO = Constraint.choice(["yes", "yes. really"])
WORDS = Constraint.regex("狗狗+( 狗)?")


@pytest.mark.parametrize(
    ("form", "script", "options", "text", "reason", "complete"),
    [
        (None, "yes<|im_end|>", {}, "yes", "stop", None),
        (None, "yes", {"max_new_tokens": 1}, decode(ids("yes")[:1]), "length", None),
        (TWO, "yes<|im_end|>", {}, "yes", "stop", True),
        (TWO, "yes. really", {}, "yes. really", "stop", True),
        (TWO, "yes. really", {"stop": ["."]}, "yes", "stop_string", True),  # by chance
        (TWO, "yes. really", {"stop": ["s"]}, "ye", "stop_string", False),
        (TWO, "yes. really", {"stop": [" "]}, "yes.", "stop_string", False),
        (TWO, "yes. really", {"max_new_tokens": 1}, "yes", "length", True),
        (
            TWO,
            "yes. really",
            {"max_new_tokens": 1, "stop": ["es"]},
            "y",
            "length",
            False,
        ),  # closed into the stop string
        (WORDS, "狗狗狗狗狗", {"max_new_tokens": 7}, "狗狗狗", "length", True),  # cut inside a character
        (WORDS, "狗狗 狗", {"stop": [" "]}, "狗狗", "stop_string", True),
        (Constraint.regex(" a"), " a", {}, "a", "stop", False),  # raw_text has no white space around it
    ],
)
def test_the_reply_tells_whether_its_form_is_whole(tmp_path, form, script, options, text, reason, complete):
    qwen, _ = engine(tmp_path, script, "yes<|im_end|>")
    reply = qwen.chat("hi", constraint=form, **options)
    assert (reply.raw_text, reply.finish_reason, reply.complete) == (text, reason, complete)
    assert qwen.chat("again", constraint=form and TWO).complete == (form and True)


def test_complete_is_what_a_parser_finds(tmp_path):
    """Cut anywhere, by the number of tokens or a stop string."""
    form = re.compile(r"[A-Z]{2,4}-\d{3}(狗|\.)")
    found = []
    for seed, stop in enumerate("狗.-7KQ,A狗.-7"):
        for limit in range(1, 9):
            reply = random_answer(tmp_path, Constraint.regex(form.pattern), seed, max_new_tokens=limit, stop=[stop])
            assert reply.complete == bool(form.fullmatch(reply.raw_text))
            found.append(reply.complete)
    assert found.count(True) > 20 and found.count(False) > 20


def test_complete_after_a_cancellation_and_a_deadline(tmp_path, monkeypatch):
    early = CancelToken()
    early.cancel()
    form = Constraint.regex("a*")
    qwen, backend = engine(tmp_path, CHATTER, CHATTER)
    assert qwen.chat("hi", constraint=TWO, cancel=early).complete is False
    assert qwen.chat("hi", constraint=form, cancel=early).complete is True  # nothing is what it allows
    backend.runner_up = 0
    with qwen.stream("hi", constraint=Constraint.json(SCHEMA)) as stream:
        next(stream)
        stream.cancel()
    assert (stream.reply.finish_reason, stream.reply.complete) == ("cancelled", True)
    monkeypatch.setattr("qwenvl_edge.inputs.request.time.perf_counter", lambda: backend.steps * 1e9)
    reply = qwen.chat("hi", constraint=Constraint.json(SCHEMA), deadline_ms=1)
    assert (reply.finish_reason, reply.complete) == ("deadline", bool(reply.raw_text))


def test_what_cannot_be_closed_soon_stays_open(tmp_path):
    reply = random_answer(tmp_path, Constraint.regex("[a-z]{3000}"), 1, max_new_tokens=3)
    assert reply.finish_reason == "length" and len(reply.raw_text) < 100 and reply.complete is False


def test_forced_tokens_are_computed_together(tmp_path):
    reply = random_answer(tmp_path, Constraint.json(SCHEMA), 3)
    alone = random_answer(tmp_path, Constraint.json(SCHEMA), 3, lookup=False)
    assert reply.raw_text == alone.raw_text
    qwen, backend = engine(tmp_path, ids('{"colour":"red","count":7}'))
    answer = qwen.chat("hi", constraint=Constraint.json(SCHEMA))
    assert answer.raw_text == '{"colour":"red","count":7}'
    stats = answer.stats
    assert stats.forced_tokens > 0 and backend.steps <= stats.new_tokens - stats.forced_tokens + 1
    assert len(stats.token_ms) == stats.new_tokens - 1


def test_forced_tokens_longer_than_a_chunk(tmp_path):
    long = "It is a red mug that stands on a blue table. " * 3
    qwen, backend = engine(tmp_path, ids(long + "!"), prefill_chunk=5)
    backend.runner_up = ids("!")[0]
    reply = qwen.chat("hi", constraint=Constraint.regex(re.escape(long) + "[!?]"))
    assert reply.raw_text == long + "!" and reply.stats.forced_tokens > 20


def test_a_constraint_can_be_used_again_after_answers_that_were_cut(tmp_path):
    form = Constraint.choice(["yes it is", "no it is not"])
    qwen, backend = engine(tmp_path, *[ids("no it is not")] * 13)
    backend.runner_up = 0
    limits = [1, 500, 2, 500]
    replies = [qwen.chat("hi", constraint=form, max_new_tokens=limit) for limit in limits]
    assert [reply.finish_reason for reply in replies] == ["length", "stop", "length", "stop"]
    assert replies[1].raw_text == replies[3].raw_text == "no it is not"
    for number in range(8):  # others push it out of those that are kept
        assert qwen.chat("hi", constraint=Constraint.choice([f"no{number}"])).raw_text == f"no{number}"
    qwen.chat("hi", constraint=Constraint.choice(["no"]))


def test_the_same_constraint_in_two_answers_at_once(tmp_path):
    form = Constraint.choice(["yes it is", "no it is not"])
    qwen, backend = engine(tmp_path, ids("no it is not"), ids("no it is not"))
    backend.runner_up = 0
    first, second = (qwen.stream("hi", constraint=form) for _ in range(2))
    assert [stream.finish().raw_text for stream in (second, first)] == ["no it is not"] * 2


def test_the_answer_ends_where_the_form_is_complete(tmp_path):
    qwen, backend = engine(tmp_path, ids("yes") + CHATTER)
    reply = qwen.chat("hi", constraint=Constraint.choice(["yes", "no"]))
    assert (reply.raw_text, reply.finish_reason, backend.steps) == ("yes", "stop", 1)
    assert reply.stats.new_tokens == len(ids("yes")) == 2  # the second one was forced


def test_stop_words_of_a_base_model_may_stand_in_a_form(tmp_path):
    qwen, _ = engine(tmp_path, ids("Human: yes"), generation={"chat_format": "raw"})
    reply = qwen.complete("hi", constraint=Constraint.choice(["Human: yes", "Human: no"]))
    assert (reply.raw_text, reply.finish_reason) == ("Human: yes", "stop")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.json({"a": {1, 2}}), "JSON Schema"),
        (lambda: Constraint.regex(""), "regular expression"),
        (lambda: Constraint.choice([]), "choices"),
        (lambda: Constraint.choice("yes"), "choices"),
        (lambda: Constraint.choice(["a", ""]), "choices"),
    ],
)
def test_constraints_are_checked(make, message):
    with pytest.raises(PromptError, match=message):
        make()


@pytest.mark.parametrize("constraint", [Constraint.regex("(a"), Constraint.json({"type": "nothing"}), "yes"])
def test_malformed_constraints_are_refused_before_work_starts(tmp_path, constraint):
    qwen, backend = engine(tmp_path, CHATTER)
    with pytest.raises(PromptError, match="constraint is"):
        qwen.chat("hi", constraint=constraint)
    assert backend.prompts == []


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    qwen, _ = engine(tmp_path, "fine<|im_end|>")
    with pytest.raises(QwenVLError, match=r"pip install 'qwenvl-edge\[constrained\]'"):
        qwen.chat("hi", constraint=Constraint.json())
    assert qwen.chat("hi").text == "fine"


@pytest.mark.parametrize("call", ["allowed", "forced", "take"])
def test_what_a_constraint_costs_counts_in_the_time_of_a_token(tmp_path, monkeypatch, call):
    seconds = [0.0]  # pass in this call only
    spent = getattr(Matcher, call)

    def slow(*arguments):
        seconds[0] += 1
        return spent(*arguments)

    monkeypatch.setattr(Matcher, call, slow)
    monkeypatch.setattr("qwenvl_edge.decoding.decode_loop.time.perf_counter", lambda: seconds[0])
    stats = random_answer(tmp_path, Constraint.regex("[a-z]{400}"), 1, max_new_tokens=20).stats
    assert len(stats.token_ms) == 19 and min(stats.token_ms[:-1]) >= 1000  # the last one asks for nothing behind it


def test_masks_cover_the_full_vocabulary():
    family = family_of(151643)
    tokenizer = Tokenizer(full_vocabulary(), family.special_tokens)
    factory = MatcherFactory(family, tokenizer)
    matcher = factory.start(Constraint.json(SCHEMA))
    for token in tokenizer.encode('{"colour":"blue","count":42}')[:-1]:
        allowed = matcher.allowed()
        assert len(allowed) == family.decodable and allowed[token]
        assert not matcher.take(token)
    assert np.count_nonzero(list(matcher.allowed())) < 10  # a closing brace, alone or as part of nothing else
    boxes = factory.start(Constraint.boxes())
    tags = [family.special_tokens[tag] for tag in ("<ref>", "<box>")]
    assert np.flatnonzero(list(boxes.allowed())).tolist() == sorted(tags)


def test_an_end_that_is_too_far_is_not_looked_for_with_gigabytes():
    family = family_of(151643)
    factory = MatcherFactory(family, Tokenizer(full_vocabulary(), family.special_tokens))
    far = {"type": "null"}
    for _ in range(3):
        far = {"type": "array", "minItems": 1000, "items": far}
    for schema in (far, {"type": "string", "minLength": 10**6}, {"type": "array", "minItems": 10**5, "items": {}}):
        matcher = factory.start(Constraint.json(schema))
        for token in matcher.forced()[:8]:
            matcher.take(token)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        assert matcher.closing() == []
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
        assert time.process_time() - started < 5
    assert len(
        factory.start(Constraint.json({"type": "array", "minItems": 200, "items": {"type": "integer"}})).closing()
    )
