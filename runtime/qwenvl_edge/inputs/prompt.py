"""Prompts: parts and turns -> token ids, to the token as the published code builds them.

Security differs from the published code on purpose: words of a user are never control tokens. In a chat, structure
comes from the message's items alone; a raw prompt's text may hold grounding markup, but never pictures or control
tokens of turns. An assistant's earlier answers keep their grounding markup, which the model wrote.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qwenvl_edge.families.base import Family, Marked, Piece, Positions, Slot, Span
from qwenvl_edge.inputs.messages import Part, Region, Text, Turn
from qwenvl_edge.inputs.pictures import Picture
from qwenvl_edge.inputs.tokenizer import Tokenizer

_KEPT_TEXTS = 64


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [T]; features replace the rows of `spans`, which name their pictures by number.

    turns: how many turns of the history were kept. positions: those of the prompt and of the tokens after it.
    """

    ids: npt.NDArray[np.int64] = field(repr=False)
    pictures: tuple[Picture, ...]
    spans: tuple[Span, ...]
    turns: int
    positions: Positions = field(repr=False)


@dataclass
class _Chunk:
    """A run of ids with its pictures and their spans, both counted from the chunk's beginning."""

    ids: list[int] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def append(self, other: _Chunk) -> None:
        """Add a chunk at the end."""
        start, first = len(self.ids), len(self.pictures)
        self.spans += [Span(start + s.start, s.length, first + s.picture, s.layout) for s in other.spans]
        self.ids += other.ids
        self.pictures += other.pictures


class PromptBuilder:
    """Builds prompts for one family and tokenizer."""

    def __init__(self, family: Family, tokenizer: Tokenizer) -> None:
        self._family = family
        # What is said in a conversation comes again with every question. The lists are never changed in place.
        self._encoded = functools.lru_cache(maxsize=_KEPT_TEXTS)(tokenizer.encode)

    def chat(
        self,
        message: Sequence[Part],
        *,
        history: Sequence[Turn] = (),
        system: str,
        window: int,
        limit: int | None = None,
    ) -> Prompt:
        """Build a conversation's prompt that ends where the assistant's answer begins.

        Whole turns of the history are kept, newest first, while system and kept turns stay below `window` tokens (the
        published make_context; the new message is not counted), and the prompt below `limit`, if one is given. The
        first turn that does not fit ends the walk.
        """
        question = self._chunk(self._family.question(self._content(message)), message)
        if limit is not None:
            window = min(window, limit - len(question.ids))
        prompt = self._chunk(self._family.system_turn(system), ())
        kept: list[_Chunk] = []
        length = len(prompt.ids)
        for turn in reversed(history):
            chunk = self._chunk(self._family.past_turn(self._content(turn.user), turn.assistant), turn.user)
            length += len(chunk.ids)
            if length >= window:
                break
            kept.append(chunk)
        for chunk in (*reversed(kept), question):
            prompt.append(chunk)
        return self._prompt(prompt, len(kept))

    def raw(self, parts: Sequence[Part]) -> Prompt:
        """Build a prompt without a chat template; texts may hold grounding markup."""
        return self._prompt(self._chunk(self._content(parts, words_as=Marked), parts), 0)

    def _content(self, parts: Sequence[Part], words_as: type[str] | type[Marked] = str) -> list[Piece]:
        """Return the pieces of a message; words that touch are one piece, as the published code joins strings."""
        pieces: list[Piece] = []
        words, number = "", 0
        for part in parts:
            if isinstance(part, Text):
                words += part.text
                continue
            if isinstance(part, Region):
                before, inner, after = "", self._family.region(part.label, part.boxes), ""
            else:
                before, after = self._family.picture_caption(number + 1)
                inner = [Slot(number, self._family.layout(part.size))]
                number += 1
            pieces += [words_as(words + before), *inner]
            words = after
        return [*pieces, words_as(words)]

    def _chunk(self, pieces: Iterable[Piece], parts: Sequence[Part]) -> _Chunk:
        """Encode pieces; parts: those whose pictures the slots among the pieces name."""
        chunk = _Chunk(pictures=[part for part in parts if isinstance(part, Picture)])
        for piece in pieces:
            if isinstance(piece, str):
                chunk.ids += self._encoded(piece, allowed_special=())
            elif isinstance(piece, Marked):
                chunk.ids += self._encoded(piece.text, allowed_special=self._family.markup_tags)
            elif isinstance(piece, Slot):
                ids = self._family.picture_ids(piece.layout)
                start = len(chunk.ids) + len(ids.before)
                chunk.spans.append(Span(start, len(ids.rows), piece.picture, piece.layout))
                chunk.ids += (*ids.before, *ids.rows, *ids.after)
            else:
                chunk.ids.append(piece)
        return chunk

    def _prompt(self, chunk: _Chunk, turns: int) -> Prompt:
        spans = tuple(chunk.spans)
        positions = self._family.positions(len(chunk.ids), spans)
        return Prompt(np.asarray(chunk.ids, dtype=np.int64), tuple(chunk.pictures), spans, turns, positions)


def parts_after_pictures(parts: Sequence[Part]) -> tuple[Text | Region, ...]:
    """Return the words and regions after the last picture: what an answer to a raw prompt may continue."""
    after: list[Text | Region] = []
    for part in parts:
        if isinstance(part, Picture):
            after.clear()
        else:
            after.append(part)
    return tuple(after)
