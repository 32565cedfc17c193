"""Answers that repeat text of their prompt, said by any model: what look-up decoding gains there.

A small trained model and one of random weights do not copy what they are shown. So the answer is dictated: the model
computes the logits after every token, the sampler draws from them, and then the dictated token is taken instead. It
costs as much as an answer that says the same by itself. Each answer repeats its prompt but for a few words or digits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import qwenvl_edge.decoding.decode_loop
from qwenvl_edge import Constraint, QwenVLEngine
from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.families.base import Family

READ = "OCR with grounding:"
_TEXT = (
    "<ref>EXIT</ref><box>(662,118),(905,262)</box><ref>GATE 4</ref><box>(120,95),(318,187)</box>"
    "<ref>NO PARKING</ref><box>(408,514),(596,633)</box><ref>OPEN</ref><box>(77,705),(203,778)</box>"
)
_LIST = "a red mug, a blue car, a yellow ball, a green tree, a white cup, a sign that says EXIT"
_JSON = (
    '{"objects":[{"thing":"mug","colour":"red","box":[41,242,202,411]},{"thing":"car","colour":"blue","box":'
    '[227,301,446,416]},{"thing":"ball","colour":"yellow","box":[488,350,570,431]}]}'
)
_THING = {
    "type": "object",
    "properties": {
        "thing": {"type": "string", "maxLength": 12},
        "colour": {"type": "string", "maxLength": 12},
        "box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
    },
    "required": ["thing", "colour", "box"],
    "additionalProperties": False,
}
_SCHEMA = {
    "type": "object",
    "properties": {"objects": {"type": "array", "items": _THING, "minItems": 1, "maxItems": 8}},
    "required": ["objects"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Repeating:
    """A question about a frame, the answer dictated to it, and the turns before it: questions and answers."""

    question: str
    answer: str
    turns: tuple[tuple[str, str], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


_moved_text = _TEXT.replace("(408,514),(596,633)", "(411,509),(601,630)")
_moved_json = _JSON.replace("227,301,446,416", "233,301,452,416")
REPEATING = {
    # The same picture is read again after another question: its OCR stands in the prompt.
    "the prompt's text and boxes": Repeating(READ, _moved_text, ((READ, _TEXT),)),
    "the prompt's list": Repeating(
        f"Which of these do you see: {_LIST}?", f"I see {_LIST.replace(' a green tree,', '')}."
    ),
    "the prompt's JSON": Repeating(f"Bring this up to date: {_JSON}", _moved_json),
    "the prompt's JSON, constrained": Repeating(
        f"Bring this up to date: {_JSON}", _moved_json, options={"constraint": Constraint.json(_SCHEMA)}
    ),
}


@contextlib.contextmanager
def dictating(engine: QwenVLEngine, family: Family, answer: str, prompt_tokens: int) -> Iterator[None]:
    """Whatever the engine answers to a prompt of so many tokens meanwhile, it says `answer`."""
    tokenizer, tags = engine._tokenizer, family.markup_tags
    wanted = tokenizer.encode(answer, allowed_special=tags)

    def token_behind(said: list[int]) -> int:
        if said == wanted[: len(said)]:
            return [*wanted, family.turn_end][len(said)]
        # Tokens that a constraint forced divide the text in another way.
        rest = answer.removeprefix(tokenizer.decode(said))
        return tokenizer.encode(rest, allowed_special=tags)[0] if rest else family.turn_end

    class Dictated(Sampler):
        def sample(self, logits: Any, previous: Any = (), **options: Any) -> int:
            super().sample(logits, previous, **options)
            return token_behind(previous[prompt_tokens:].tolist())

    plain = qwenvl_edge.decoding.decode_loop.Sampler
    qwenvl_edge.decoding.decode_loop.Sampler = Dictated  # type: ignore[misc]
    try:
        yield
    finally:
        qwenvl_edge.decoding.decode_loop.Sampler = plain  # type: ignore[misc]
