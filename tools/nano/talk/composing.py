"""Conversations -> token sequences, through the runtime's own family and tokenizer.

Conversations about the same pictures share them: each is a segment that sees the prefix with the pictures and itself,
with positions that go on from the prefix, exactly as if it stood there alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qwenvl_edge.families.base import Family
from qwenvl_edge.families.dynamic_vl import DynamicVLFamily
from qwenvl_edge.families.mrope import positions_of
from qwenvl_edge.families.pieces import Marked, PictureLayout, Piece, Rows, Shown, Span, joined
from qwenvl_edge.inputs.tokenizer import Tokenizer
from tools.nano.scenes import Box
from tools.nano.talk.chatting import Conversation
from tools.nano.talk.forms import DIGITS, TEXT, WORDS, Form, Mark
from tools.nano.talk.turns import Turn

LAST_DIGIT_WEIGHT = 0.25  # a thousandth of the picture is a quarter of a pixel
TEXT_WEIGHT = 1.5  # letters are few among the tokens and the hardest to learn


@dataclass(frozen=True)
class About:
    """Subject of an answer's token: places in a picture, and the tokens of the question that name it."""

    picture: int
    boxes: tuple[Box, ...]
    named: tuple[int, ...]


@dataclass
class Encoded:
    """A conversation as tokens. positions: [3, T] or [1, T]. weights: of the loss of each token, 0 where it is given.
    prefix: tokens up to the end of the pictures; 0 if words come first.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    about: list[About | None] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    prefix: int = 0
    positions: np.ndarray = field(default_factory=lambda: np.zeros((1, 0), np.int64))

    def give(self, ids: Iterable[int]) -> None:
        """Append tokens that are not learnt."""
        for id_ in ids:
            self.learn(id_, 0.0, WORDS, None)

    def learn(self, id_: int, weight: float, kind: int, about: About | None) -> None:
        """Append one token."""
        self.ids.append(id_)
        self.weights.append(weight)
        self.classes.append(kind)
        self.about.append(about)


class Composer:
    """Builds sequences for one family."""

    def __init__(self, family: Family, tokenizer: Tokenizer, form: Form):
        self.family, self.tokenizer, self.form = family, tokenizer, form
        special = family.special_tokens
        self.end = special["<|im_end|>"]
        self.special = frozenset(special.values())
        self._texts: dict[tuple[str, bool], list[int]] = {}
        self._bytes: dict[int, int] = {}

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        """Ids of words; marked: grounding markup in them becomes control tokens."""
        key = text, marked
        if key not in self._texts:
            if len(self._texts) > 50_000:
                self._texts.clear()
            allowed = self.family.markup_tags if marked else ()
            self._texts[key] = self.tokenizer.encode(text, allowed_special=allowed)
        return self._texts[key]

    def compose(self, talk: Conversation, layouts: Sequence[PictureLayout]) -> Encoded:
        """Encode a conversation about pictures with these layouts; its answers are what is learnt."""
        result = Encoded()
        self._pieces(result, self.family.system_turn(self.family.default_system))
        for number, turn in enumerate(talk.turns):
            pictures: list[Piece] = []
            if number == 0:
                for picture, layout in enumerate(layouts):
                    pictures += self.family.picture(Shown(picture, picture + 1, 0, layout))
            self._turn(result, turn, pictures, first=talk.question_first)
        result.prefix = (
            0 if talk.question_first or not result.spans else result.spans[-1].start + result.spans[-1].length
        )
        result.positions = self.positions(len(result.ids), result.spans)
        return result

    def _turn(self, result: Encoded, turn: Turn, pictures: list[Piece], *, first: bool) -> None:
        user = joined([turn.question, *pictures] if first else [*pictures, turn.question])
        written = self.form.write(turn.answer)
        begin = len(result.ids)
        question = self.family.question(user)
        self._pieces(result, question)
        named = self._named(result.ids, begin, turn)
        asked = len(result.ids) - begin
        whole = Encoded()
        self._pieces(whole, self.family.past_turn(user, written.text))
        assert whole.ids[:asked] == result.ids[begin:]
        answer = whole.ids[asked:]
        length = answer.index(self.end)
        for token, mark, last in self._marked(answer[:length], written.text, written.marks):
            about = About(mark.picture, mark.focus, named) if mark and mark.focus else None
            kind = mark.kind if mark else WORDS
            weight = LAST_DIGIT_WEIGHT if last else TEXT_WEIGHT if kind == TEXT else 1.0
            result.learn(token, weight, WORDS if last else kind, about)
        result.learn(self.end, 1.0, WORDS, None)
        result.give(answer[length + 1 :])

    def _pieces(self, result: Encoded, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Rows):
                result.spans.append(Span(len(result.ids), piece.count, piece.picture, piece.layout, piece.first))
                result.give([piece.id] * piece.count)
            elif isinstance(piece, int):
                result.give([piece])
            elif isinstance(piece, Marked):
                result.give(self.encode(piece.text, marked=True))
            else:
                result.give(self.encode(piece))

    def _named(self, ids: list[int], begin: int, turn: Turn) -> tuple[int, ...]:
        """The tokens from `begin` on that write the names in a question."""
        found: list[int] = []
        for name in turn.names:
            for text in (f" {name}", name):  # a space before a word belongs to its token
                wanted = self.encode(text)
                at = next(
                    (i for i in range(begin, len(ids) - len(wanted) + 1) if ids[i : i + len(wanted)] == wanted), None
                )
                if at is not None:
                    found += range(at, at + len(wanted))
                    break
        return tuple(found)

    def _marked(self, ids: Sequence[int], text: str, marks: Sequence[Mark]) -> Iterable[tuple[int, Mark | None, bool]]:
        """Each token with the mark at its end, and whether it is the last digit of a coordinate."""
        ends = np.cumsum([len(char.encode()) for char in text])  # bytes up to each character
        at, number = 0, 0
        for id_ in ids:
            at += self._length(id_)
            char = int(np.searchsorted(ends, at))
            while number < len(marks) - 1 and marks[number].end <= char:
                number += 1
            mark = marks[number] if marks else None
            digit = text[char : char + 1].isdigit()
            last = bool(mark) and mark.kind == DIGITS and digit and not text[char + 1 : char + 2].isdigit()
            yield id_, mark, last

    def _length(self, id_: int) -> int:
        if id_ not in self._bytes:
            self._bytes[id_] = len(self.tokenizer.decode_bytes([id_]))
        return self._bytes[id_]

    def positions(self, length: int, spans: Sequence[Span]) -> np.ndarray:
        """Positions of the tokens of a sequence, [3, length], or [1, length] in a family with one axis."""
        if isinstance(self.family, DynamicVLFamily):
            return positions_of(length, spans, lambda layout: [0] * layout.grid[0])
        return np.arange(length)[None]
