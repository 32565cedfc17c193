"""The tokens that a constraint allows next, computed by llguidance (the extra "constrained").

Its masks cover the tokenizer's whole vocabulary, special tokens included; the sampler leaves out what they forbid.
"""

from __future__ import annotations

import functools
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from qwenvl_edge.constraints.completion import preference
from qwenvl_edge.constraints.constraint import Constraint
from qwenvl_edge.constraints.ending import MOST_LEXER_STATES, Alphabet, Ending, Seek, find_end
from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.families.base import Family

_KEPT = 8
_MISTAKES = {"NoExtensionBias": "nothing can be written that keeps to it", "NoExtension": "nothing keeps to it"}
_NO_WHITE_SPACE = {"whitespace_flexible": False}


class Vocabulary(Protocol):
    """The part of a tokenizer that constraints need."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, none of them a special token."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""


class Matcher:
    """Follows one answer; call `release` at its end.

    grammar: llguidance's, of the form. text_of: gives the bytes of ids. give_back: takes the llguidance matcher.
    """

    def __init__(
        self,
        matcher: Any,
        grammar: str,
        alphabet: Alphabet,
        text_of: Callable[[Sequence[int]], bytes],
        give_back: Callable[[], None],
    ) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._alphabet = alphabet
        self._text_of = text_of
        self._taken: list[int] = []
        self._give_back = give_back

    def allowed(self) -> bytes:
        """Return a byte per decodable id, 0 if it may not come next; the end ids are allowed where the form may end."""
        allowed: bytes = self._matcher.compute_logit_bias()
        return allowed

    def allows(self, token: int) -> bool:
        """Tell whether an id may come next; far quicker than `allowed`."""
        return bool(self._matcher.validate_tokens([token]))

    def forced(self) -> list[int]:
        """Return the ids that must come next, divided as the tokenizer divides text; often none."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def closing(self, seek: Seek = find_end) -> list[int]:
        """Return few ids that complete the form after what was taken; none if `seek` found no end soon."""
        named = {id_ for id_, _ in self._alphabet.named}
        taken = [[id_] if id_ in named else self._spelled(self._text_of([id_])) for id_ in self._taken]
        return seek(Ending(self._grammar, tuple(itertools.chain.from_iterable(taken)), self._alphabet))

    def take(self, token: int) -> bool:
        """Take the next id, an allowed one; return True if nothing but the end may follow.

        Raises:
            QwenVLError: llguidance gave up, for example because the constraint became too complex.
        """
        if not self._matcher.consume_token(token):
            reason = mistake(self._matcher.get_error())
            raise QwenVLError(f"the constraint could not be followed: {reason}; simplify it.")
        self._taken.append(token)
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def is_whole(self, text: str) -> bool:
        """Tell whether `text`, all or the beginning of what was taken, is a whole form; take nothing after this."""
        rest, kept = text.encode(), 0
        for piece in (self._text_of([token]) for token in self._taken):
            if not rest.startswith(piece):
                break
            rest, kept = rest[len(piece) :], kept + 1
        self._matcher.rollback(len(self._taken) - kept)
        taken: int = self._matcher.try_consume_tokens(self._spelled(rest))
        return taken == len(rest) and bool(self._matcher.is_accepting())

    def release(self) -> None:
        """Keep the computed masks for the next answer; the matcher must not be used after this."""
        self._give_back()

    def _spelled(self, text: bytes) -> list[int]:
        return [self._alphabet.single[byte] for byte in text]


class MatcherFactory:
    """Makes matchers for one vocabulary. The first one costs seconds with a full vocabulary, further ones little.

    Masks are quicker where they were computed before, so the matchers of the last few constraints are used again.
    """

    def __init__(self, family: Family, vocabulary: Vocabulary) -> None:
        self._family = family
        self._text = vocabulary
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._alphabet: Alphabet | None = None
        self._idle: OrderedDict[Constraint, tuple[Any, str]] = OrderedDict()

    def start(self, constraint: Constraint) -> Matcher:
        """Return a matcher at the beginning of an answer.

        Raises:
            PromptError: the constraint is malformed.
            QwenVLError: llguidance is not installed.
        """
        llguidance = _llguidance()
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary, self._alphabet = self._read_vocabulary(llguidance)
            matcher, grammar = self._idle.pop(constraint, (None, ""))
        assert self._alphabet is not None
        try:
            if matcher is None or not matcher.reset():
                grammar = self._grammar(constraint)
                limits = llguidance.LLParserLimits(max_lexer_states=MOST_LEXER_STATES, verbose_errors=False)
                matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise PromptError(f"the constraint is malformed: {mistake(error)}.") from None
        if matcher.is_error():
            raise PromptError(f"the constraint is malformed: {mistake(matcher.get_error())}.")
        give_back = functools.partial(self._keep, constraint, matcher, grammar)
        return Matcher(matcher, grammar, self._alphabet, self._text.decode_bytes, give_back)

    def _keep(self, constraint: Constraint, matcher: Any, grammar: str) -> None:
        with self._lock:
            if not matcher.is_error():
                self._idle[constraint] = matcher, grammar
            if len(self._idle) > _KEPT:
                self._idle.popitem(last=False)

    def _read_vocabulary(self, llguidance: Any) -> tuple[Any, Alphabet]:
        family = self._family
        view = _TokenizerView(family, self._text)
        single = {text[0]: id_ for id_, text in enumerate(view.tokens) if len(text) == 1}
        alphabet = Alphabet(
            family.decodable,
            tuple(single[byte] for byte in range(256)),
            tuple((id_, name) for name, id_ in family.special_tokens.items()),
            tuple(family.end_ids),
            tuple(self._closing_order(single)),
        )
        wrapper = llguidance.TokenizerWrapper(view)
        return llguidance.LLTokenizer(wrapper, n_vocab=alphabet.size, eos_token=list(alphabet.ends)), alphabet

    def _closing_order(self, single: Mapping[int, int]) -> list[int]:
        tokens, closing = self._family.special_tokens, self._family.closing_tags
        opening = [tag for tag in self._family.markup_tags if tag not in closing]
        return preference(single, [tokens[tag] for tag in closing], [tokens[tag] for tag in opening])

    def _grammar(self, constraint: Constraint) -> str:
        family = self._family
        if constraint.kind not in ("boxes", "tools"):
            return written_grammar(constraint)
        lark = family.box_grammar() if constraint.kind == "boxes" else family.tool_grammar(constraint.source)
        grammar: str = _llguidance().LLMatcher.grammar_from_lark(lark)
        return grammar


def written_grammar(constraint: Constraint) -> str:
    """Return the grammar of a form that its caller wrote: of boxes nothing, of tool calls what is in the tags.

    Raises:
        ValueError: the form is malformed; not every mistake is found here.
        QwenVLError: llguidance is not installed.
    """
    maker = _llguidance().LLMatcher
    grammar: str
    if constraint.kind == "tools":
        grammar = maker.grammar_from_json_schema(json.dumps(json.loads(constraint.source)["schema"]))
    elif constraint.kind == "json":
        grammar = maker.grammar_from_json_schema(constraint.source, overrides=_NO_WHITE_SPACE)
    elif constraint.kind == "regex":
        grammar = maker.grammar_from_regex(constraint.source)
    elif constraint.kind == "gbnf":
        grammar = maker.grammar_from_lark(_lark(constraint.source))
    else:
        options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(constraint.source))
        grammar = maker.grammar_from_lark(f"start: {options}")
    return grammar


def _lark(gbnf: str) -> str:
    """Return a grammar of llama.cpp's notation in llguidance's. Raises ValueError."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        lark: str = gbnf_to_lark(gbnf)
    except RecursionError:
        raise ValueError("the grammar is nested too deeply") from None
    except Exception as error:  # it raises plain Exceptions
        raise ValueError(f"the grammar cannot be read: {error}") from None
    return lark


class _TokenizerView:
    """A vocabulary in the form that llguidance's TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(self, family: Family, vocabulary: Vocabulary) -> None:
        self.eos_token_id = family.end_of_text
        self.tokens = [vocabulary.decode_bytes([id_]) for id_ in range(family.decodable)]
        self.special_token_ids = list(family.special_tokens.values())
        self._encode = vocabulary.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"constraints need {error.name}, which is not installed; run: pip install 'qwenvl-edge[constrained]'"
        ) from error
    return llguidance


def mistake(error: object) -> str:
    """Return what llguidance says of a grammar as a clause, without the state of its parser."""
    said = " ".join(str(error).partition("<state>")[0].split())[:300].rstrip(".")
    return _MISTAKES.get(said, said) or "its grammar is not understood"
