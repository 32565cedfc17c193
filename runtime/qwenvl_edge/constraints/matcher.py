"""Constraints at work: which tokens may come next, computed by llguidance (the extra "constrained").

Its masks cover this tokenizer's whole vocabulary, special tokens included; the sampler leaves out what they forbid.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl_edge.constraints.completion import preference, shortest_end
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.families import QwenVL
from qwenvl_edge.inputs.tokenizer import Tokenizer

_KEPT = 8
_NO_WHITE_SPACE = {"whitespace_flexible": False}


@dataclass(frozen=True)
class _Ids:
    """Ids and their bytes: `single` of each byte alone, `closing` in the order in which an end is sought."""

    single: Mapping[int, int]
    closing: Sequence[int]
    text_of: Callable[[Sequence[int]], bytes]


class Matcher:
    """Follows one answer; `release` it then."""

    def __init__(self, matcher: Any, ids: _Ids, give_back: Callable[[Any], None]) -> None:
        self._matcher = matcher
        self._ids = ids
        self._taken: list[int] = []
        self._give_back = give_back

    def allowed(self) -> bytes:
        """A byte for each of `decodable` ids, 0 if it may not come next; where the answer may end, its ends may."""
        allowed: bytes = self._matcher.compute_logit_bias()
        return allowed

    def allows(self, token: int) -> bool:
        """Whether an id may come next; far quicker than `allowed`."""
        return bool(self._matcher.validate_tokens([token]))

    def forced(self) -> list[int]:
        """Ids that must come next, in the tokenizer's own division; often none."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def closing(self) -> list[int]:
        """Ids that complete the form behind what was said, as few as are found soon; none if none are."""
        return shortest_end(self._matcher, self._ids.closing)

    def take(self, token: int) -> bool:
        """Go on behind an allowed id; return whether nothing may follow but the end.

        Raises:
            QwenVLError: llguidance gave up, for example because the constraint became too complex.
        """
        if not self._matcher.consume_token(token):
            reason = _sentence(self._matcher.get_error())
            raise QwenVLError(f"the constraint could not be followed: {reason}; simplify it.")
        self._taken.append(token)
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def is_whole(self, text: str) -> bool:
        """Whether `text`, the beginning of what was taken or all of it, is a whole form; nothing can be taken then."""
        rest, kept = text.encode(), 0
        for piece in (self._ids.text_of([token]) for token in self._taken):
            if not rest.startswith(piece):
                break
            rest, kept = rest[len(piece) :], kept + 1
        self._matcher.rollback(len(self._taken) - kept)
        taken: int = self._matcher.try_consume_tokens([self._ids.single[byte] for byte in rest])
        return taken == len(rest) and bool(self._matcher.is_accepting())

    def release(self) -> None:
        """Give back what was learned of the constraint, for the next answer; the matcher is of no use after that."""
        self._give_back(self._matcher)


class MatcherFactory:
    """Makes matchers for one vocabulary. The first one costs seconds with a full vocabulary, further ones little.

    Masks are quicker where they were computed before, so the matchers of the last few constraints are used again.
    """

    def __init__(self, family: QwenVL, tokenizer: Tokenizer, ends: Sequence[int]) -> None:
        self._family = family
        self._tokenizer = tokenizer
        self._ends = list(ends)
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._idle: OrderedDict[Constraint, Any] = OrderedDict()
        self._ids = _Ids({}, (), tokenizer.decode_bytes)

    def start(self, constraint: Constraint) -> Matcher:
        """Return a matcher at the beginning of an answer.

        Raises:
            PromptError: the constraint is malformed.
            QwenVLError: llguidance is not installed.
        """
        llguidance = _llguidance()
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._read_vocabulary(llguidance)
            matcher = self._idle.pop(constraint, None)
        try:
            if matcher is None or not matcher.reset():
                matcher = llguidance.LLMatcher(self._vocabulary, self._grammar(llguidance.LLMatcher, constraint))
        except ValueError as error:
            raise PromptError(f"the constraint is malformed: {_sentence(error)}.") from None
        if matcher.is_error():
            raise PromptError(f"the constraint is malformed: {_sentence(matcher.get_error())}.")
        return Matcher(matcher, self._ids, lambda idle: self._keep(constraint, idle))

    def _keep(self, constraint: Constraint, matcher: Any) -> None:
        with self._lock:
            if not matcher.is_error():
                self._idle[constraint] = matcher
            if len(self._idle) > _KEPT:
                self._idle.popitem(last=False)

    def _read_vocabulary(self, llguidance: Any) -> Any:
        vocabulary = _Vocabulary(self._family, self._tokenizer)
        single = {text[0]: id_ for id_, text in enumerate(vocabulary.tokens) if len(text) == 1}
        self._ids = _Ids(single, self._closing_order(single), self._tokenizer.decode_bytes)
        wrapper = llguidance.TokenizerWrapper(vocabulary)
        return llguidance.LLTokenizer(wrapper, n_vocab=self._family.decodable, eos_token=self._ends)

    def _closing_order(self, single: Mapping[int, int]) -> list[int]:
        tokens, tags = self._family.special_tokens, self._family.markup.tags
        closing = [tokens[tag] for tag in tags if tag.startswith("</")]
        return preference(single, closing, [tokens[tag] for tag in tags if tokens[tag] not in closing])

    def _grammar(self, maker: Any, constraint: Constraint) -> str:
        grammar: str
        if constraint.kind == "json":
            grammar = maker.grammar_from_json_schema(constraint.source, overrides=_NO_WHITE_SPACE)
        elif constraint.kind == "regex":
            grammar = maker.grammar_from_regex(constraint.source)
        elif constraint.kind == "choice":
            choices = json.loads(constraint.source)
            options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
            grammar = maker.grammar_from_lark(f"start: {options}")
        else:
            grammar = maker.grammar_from_lark(self._boxes())
        return grammar

    def _boxes(self) -> str:
        """Lark grammar of boxes on the grid 0..999; control tokens are written as <[id]>."""
        markup, tokens = self._family.markup, self._family.special_tokens

        def tag(name: str) -> str:
            return f"<[{tokens[name]}]>"

        ref, box = markup.ref, markup.box
        return rf"""
            start: item+
            item: ({tag(f"<{ref}>")} LABEL {tag(f"</{ref}>")})? box+
            box: {tag(f"<{box}>")} "(" NUMBER "," NUMBER "),(" NUMBER "," NUMBER ")" {tag(f"</{box}>")}
            NUMBER: /0|[1-9][0-9]{{0,2}}/
            LABEL: /[^<>\n]{{1,80}}/
        """


class _Vocabulary:
    """What llguidance's TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, family: QwenVL, tokenizer: Tokenizer) -> None:
        self.eos_token_id = family.end_of_text
        self.tokens = [tokenizer.decode_bytes([id_]) for id_ in range(family.decodable)]
        self.special_token_ids = list(family.special_tokens.values())
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text)


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"constraints need {error.name}, which is not installed; run: pip install 'qwenvl-edge[constrained]'"
        ) from error
    return llguidance


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
