"""Prompts: parts and turns -> token ids, to the token as the published code builds them.

Security differs from the published code on purpose: words of a user are never control tokens. In a chat, structure
comes from the message's items alone; a raw prompt's text may hold grounding markup, but never pictures or ChatML
tokens. An assistant's earlier answers keep their grounding markup, which the model wrote.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwenvl_edge.families import QwenVL
from qwenvl_edge.families.markup import format_points
from qwenvl_edge.inputs.messages import Part, Region, Text, Turn
from qwenvl_edge.inputs.pictures import Picture

if TYPE_CHECKING:
    from qwenvl_edge.inputs.tokenizer import Tokenizer

_KEPT_TEXTS = 64


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [T]; picture i's features replace the rows from `image_starts[i]` on; `turns` of history kept."""

    ids: npt.NDArray[np.int64] = field(repr=False)
    pictures: tuple[Picture, ...]
    image_starts: tuple[int, ...]
    turns: int


@dataclass(frozen=True)
class _Chunk:
    """A run of ids and the pictures whose spans it holds, in order."""

    ids: list[int]
    pictures: tuple[Picture, ...] = ()

    def __add__(self, other: _Chunk) -> _Chunk:
        return _Chunk(self.ids + other.ids, self.pictures + other.pictures)


class PromptBuilder:
    """Builds prompts for one family and tokenizer."""

    def __init__(self, family: QwenVL, tokenizer: Tokenizer) -> None:
        self._family = family
        # What is said in a conversation comes again with every question. The lists are never changed in place.
        self._encoded = functools.lru_cache(maxsize=_KEPT_TEXTS)(tokenizer.encode)
        self._newline = self._encode("\n")

    def chat(self, message: Sequence[Part], *, history: Sequence[Turn] = (), system: str, window: int) -> Prompt:
        """Build a ChatML prompt that ends where the assistant's answer begins.

        Whole turns of the history are kept, newest first, while system and kept turns stay below `window` tokens; the
        first turn that does not fit ends the walk (the published make_context; the new message is not counted).
        """
        head = self._turn(self._family.system_role, _Chunk(self._encode(system)))
        kept = _Chunk([])
        turns = 0
        for turn in reversed(history):
            chunk = self._past_turn(turn)
            if len(head.ids) + len(chunk.ids) + len(kept.ids) >= window:
                break
            kept = chunk + kept
            turns += 1
        return self._prompt(head + kept + self._question(message), turns)

    def question_length(self, message: Sequence[Part]) -> int:
        """Return how many tokens a chat prompt takes beside system and history."""
        return len(self._question(message).ids)

    def raw(self, parts: Sequence[Part]) -> Prompt:
        """Build a prompt without a chat template; texts may hold grounding markup."""
        return self._prompt(self._content(parts, self._family.markup.tags), 0)

    def _question(self, message: Sequence[Part]) -> _Chunk:
        opening = [self._family.turn_start, *self._encode(self._family.assistant_role), *self._newline]
        user = self._turn(self._family.user_role, self._content(message, ()))
        return _Chunk(self._newline) + user + _Chunk([*self._newline, *opening])

    def _past_turn(self, turn: Turn) -> _Chunk:
        chunk = _Chunk(self._newline) + self._turn(self._family.user_role, self._content(turn.user, ()))
        chunk += _Chunk(self._newline)
        if turn.assistant is None:
            return chunk
        answer = self._encode(turn.assistant, self._family.markup.tags)
        return chunk + self._turn(self._family.assistant_role, _Chunk(answer))

    def _turn(self, role: str, content: _Chunk) -> _Chunk:
        # Role, newline and content are encoded apart: BPE must not merge across them.
        return _Chunk([self._family.turn_start, *self._encode(role), *self._newline]) + (
            content + _Chunk([self._family.turn_end])
        )

    def _content(self, parts: Sequence[Part], allowed: tuple[str, ...]) -> _Chunk:
        """Encode parts; words that touch are encoded together, as the published code encodes the joined string."""
        ids: list[int] = []
        pictures: list[Picture] = []
        words = ""
        for part in parts:
            if isinstance(part, Text):
                words += part.text
            elif isinstance(part, Picture):
                pictures.append(part)
                before, after = self._family.picture_caption(len(pictures))
                ids += self._encode(words + before, allowed) + self._family.image_span
                words = after
            else:
                ids += self._encode(words, allowed) + self._region(part)
                words = ""
        return _Chunk(ids + self._encode(words, allowed), tuple(pictures))

    def _region(self, region: Region) -> list[int]:
        markup = self._family.markup
        label = [] if region.label is None else self._tagged(markup.ref, region.label)
        return label + [id_ for box in region.boxes for id_ in self._tagged(markup.box, format_points(box))]

    def _tagged(self, name: str, text: str) -> list[int]:
        tokens = self._family.special_tokens
        return [tokens[f"<{name}>"], *self._encode(text), tokens[f"</{name}>"]]

    def _encode(self, text: str, allowed: tuple[str, ...] = ()) -> list[int]:
        return self._encoded(text, allowed_special=allowed)

    def _prompt(self, chunk: _Chunk, turns: int) -> Prompt:
        ids = np.asarray(chunk.ids, dtype=np.int64)
        # Only a picture's span can put this id there, so the spans are found rather than carried along.
        starts = np.flatnonzero(ids == self._family.image_start_id) + 1
        return Prompt(ids, chunk.pictures, tuple(int(start) for start in starts), turns)


def parts_behind_pictures(parts: Sequence[Part]) -> tuple[Text | Region, ...]:
    """Return the words and regions behind the last picture: what an answer to a raw prompt may continue."""
    behind: list[Text | Region] = []
    for part in parts:
        if isinstance(part, Picture):
            behind.clear()
        else:
            behind.append(part)
    return tuple(behind)
