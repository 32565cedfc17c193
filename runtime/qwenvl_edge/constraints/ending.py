"""A constrained answer that was cut, in a form that another process can be sent, and the search for its end.

The end is sought among single bytes and control tokens, whatever the vocabulary has besides: those are all that it
needs, and the grammar compiles quickly for them. It is the same search in the engine's process and in a server's
`trial.py`, so the answer is the same, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from qwenvl_edge.constraints.completion import Rest, restless, shortest_end

MOST_LEXER_STATES = 25_000  # 1 to 2 kB each; llguidance's own limit is ten times as many


@dataclass(frozen=True)
class Alphabet:
    """The ids of a vocabulary of `size` ids among which an end is sought.

    single: of the bytes 0..255. named: of control tokens, with their names. ends: those that end an answer. order: the
    ids in the order in which they are tried.
    """

    size: int
    single: tuple[int, ...]
    named: tuple[tuple[int, str], ...]
    ends: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Ending:
    """An answer that was cut. grammar: llguidance's, of its form. taken: its tokens, spelled in the alphabet's ids."""

    grammar: str
    taken: tuple[int, ...]
    alphabet: Alphabet

    def as_record(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"grammar": self.grammar, "taken": self.taken, "alphabet": vars(self.alphabet)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Ending:
        """Return the ending of a record that was written as JSON."""
        given = record["alphabet"]
        single, ends, order = (tuple(given[name]) for name in ("single", "ends", "order"))
        named = tuple((int(id_), str(name)) for id_, name in given["named"])
        return cls(record["grammar"], tuple(record["taken"]), Alphabet(given["size"], single, named, ends, order))


Seek: TypeAlias = Callable[[Ending], list[int]]
"""Finds few ids that complete a form after what was taken; none if no end was found soon."""


def find_end(ending: Ending, rest: Rest = restless) -> list[int]:
    """Search in this thread; see Seek. rest: called between the steps of the search."""
    import llguidance

    limits = llguidance.LLParserLimits(max_lexer_states=MOST_LEXER_STATES, verbose_errors=False)
    matcher = llguidance.LLMatcher(_vocabulary(ending.alphabet), ending.grammar, log_level=0, limits=limits)
    if matcher.is_error() or not matcher.consume_tokens(list(ending.taken)):
        return []
    return shortest_end(matcher, ending.alphabet.order, rest=rest)


class _Letters:
    """An alphabet in the form that llguidance's TokenizerWrapper reads; the other ids stand for nothing."""

    bos_token_id = None

    def __init__(self, alphabet: Alphabet) -> None:
        self.eos_token_id = alphabet.ends[0]
        self.special_token_ids = [id_ for id_, _ in alphabet.named]
        self.tokens = [b""] * alphabet.size
        for byte, id_ in enumerate(alphabet.single):
            self.tokens[id_] = bytes([byte])
        for id_, name in alphabet.named:
            self.tokens[id_] = name.encode()
        self._single = alphabet.single

    def __call__(self, text: bytes | str) -> list[int]:
        return [self._single[byte] for byte in (text.encode() if isinstance(text, str) else text)]


@functools.lru_cache(maxsize=4)
def _vocabulary(alphabet: Alphabet) -> Any:
    import llguidance

    wrapper = llguidance.TokenizerWrapper(_Letters(alphabet))
    return llguidance.LLTokenizer(wrapper, n_vocab=alphabet.size, eos_token=list(alphabet.ends))
