"""Dialogues -> token sequences for training.

Many dialogues share the picture in front of them: each is a segment that sees the prefix and itself, with positions
that go on from the prefix, exactly as if it stood there alone. So a picture is encoded once for half a dozen answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tools.nano.dense import GRID, covered
from tools.nano.phrases import COLOUR_ZH, KIND_ZH
from tools.nano.scenes import COLOURS, KINDS, Box
from tools.nano.tasks import Dialogue
from tools.nano.vocabulary import SYSTEM, Codec

WORDS_ABOUT = ("colour", "kind", "refer", "yes_no", "follow_up")  # all words of these answers speak of one thing
UNNAMED = ("caption", "read", "ocr", "refer")  # what these answers speak of is not named in words before
LAST_DIGIT_WEIGHT = 0.2  # a thousandth of the picture is a ninth of the model's pixel


class Focus(NamedTuple):
    """What a token speaks of: a place in a picture, and whether the dialogue names it by colour and kind."""

    picture: int
    box: Box
    named: bool


@dataclass
class Sequence:
    """Lists of one length: ids, positions, segments (0 = the prefix), loss weights, classes and focus of tokens."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    weights: list[float]
    classes: list[int]  # 0 words, 1 coordinates, 2 text read from a sign
    focus: list[Focus | None]


class Composer:
    """Builds sequences in the ChatML or the raw format of a vocabulary."""

    def __init__(self, codec: Codec, image_tokens: int):
        self.codec = codec
        special = codec.special
        self.start, self.end, self.eot = special["<|im_start|>"], special["<|im_end|>"], special["<|endoftext|>"]
        self.picture = [special["<img>"], *[special["<imgpad>"]] * image_tokens, special["</img>"]]
        self.special = frozenset(special.values())
        self.pad = special["<imgpad>"]
        self.newline = codec.encode("\n")
        self.digits = {codec.encode(str(d))[0] for d in range(10)}
        self.names = [self._ids_of(names) for names in ((*COLOURS, *COLOUR_ZH.values()), (*KINDS, *KIND_ZH.values()))]
        self.separators = {codec.encode(text)[0] for text in (",", " and", "、", "和")}
        self.tags = {special["<box>"]: 1, special["<quad>"]: 1, special["</box>"]: 0, special["</quad>"]: 0}
        self.system = [self.start, *codec.encode("system"), *self.newline, *codec.encode(SYSTEM), self.end]

    def _ids_of(self, names: tuple[str, ...]) -> list[int]:
        """The single tokens that write one of `names`."""
        forms = [form for name in names for form in (name, f" {name}", name.capitalize(), f"{name}s", f" {name}s")]
        encoded = [self.codec.encode(form) for form in forms]
        return sorted({ids[0] for ids in encoded if len(ids) == 1})

    def _pictures(self, count: int) -> list[int]:
        encode = self.codec.encode
        return [i for n in range(count) for i in (*encode(f"Picture {n + 1}: "), *self.picture, *self.newline)]

    def _turn(self, role: str) -> list[int]:
        return [*self.newline, self.start, *self.codec.encode(role), *self.newline]

    def chat(self, dialogues: list[Dialogue], pictures: int) -> Sequence:
        """[system] [user: pictures] then one segment for each dialogue."""
        prefix = [*self.system, *self._turn("user"), *self._pictures(pictures)]
        segments = []
        for dialogue in dialogues:
            parts: list[tuple[list[int], bool]] = []
            for i, turn in enumerate(dialogue.turns):
                opening = self._turn("user") if i else []
                parts.append(([*opening, *self.codec.encode(turn.question), self.end, *self._turn("assistant")], False))
                parts.append(([*self.codec.encode(turn.answer), self.end], True))
            segments.append((dialogue, parts))
        return self._join(prefix, segments)

    def raw(self, dialogues: list[Dialogue], pictures: int) -> Sequence:
        """The base model's format: a grounding phrase to complete, or a question with "Answer:"."""
        segments = []
        for dialogue in dialogues:
            turn = dialogue.turns[-1]
            if dialogue.task.startswith("ground"):
                question, answer = turn.answer.split("<box>", 1)
                question += "<box>"
            else:
                question, answer = f"{turn.question} Answer:", f" {turn.answer}"
            parts = [(self.codec.encode(question), False), ([*self.codec.encode(answer), self.eot], True)]
            segments.append((dialogue, parts))
        return self._join(self._pictures(pictures), segments)

    def _join(self, prefix: list[int], segments: list[tuple[Dialogue, list[tuple[list[int], bool]]]]) -> Sequence:
        count = len(prefix)
        sequence = Sequence(list(prefix), list(range(count)), [0] * count, [0.0] * count, [0] * count, [None] * count)
        for number, (dialogue, parts) in enumerate(segments, 1):
            ids = [i for part, _ in parts for i in part]
            answers = [flag for part, flag in parts for _ in part]
            inside = dialogue.task.startswith("ground") and self.tags.get(parts[0][0][-1], 0)
            for k, (token, answer) in enumerate(zip(ids, answers, strict=True)):
                inside = self.tags.get(token, inside)
                digit = bool(inside) and token in self.digits
                last = digit and ids[k + 1] not in self.digits
                sequence.weights.append(float(answer) * (LAST_DIGIT_WEIGHT if last else 1.0))
                sequence.classes.append(
                    1 if digit and not last else 2 if dialogue.task in ("read", "ocr") and not inside else 0
                )
            sequence.focus += self._focus(dialogue, ids, answers)
            sequence.ids += ids
            sequence.positions += range(count, count + len(ids))
            sequence.segments += [number] * len(ids)
        return sequence

    def _focus(self, dialogue: Dialogue, ids: list[int], answers: list[bool]) -> list[Focus | None]:
        """What each answer token speaks of: the place of its box, its letter, or the thing that all words are about."""
        shapes, letters = iter(dialogue.focus), iter(dialogue.letters)
        about = dialogue.focus[0] if dialogue.focus and dialogue.task in WORDS_ABOUT else None
        place = next(shapes, None) if dialogue.task == "caption" else None
        focus: list[Focus | None] = []
        for k, (token, answer) in enumerate(zip(ids, answers, strict=True)):
            if self.tags.get(ids[k - 1]) and k and answer:  # just behind <box>, which a raw prompt holds itself
                place = next(shapes, None)
            elif token in self.tags:
                place = None
            elif dialogue.task == "caption" and token in self.separators:
                place = next(shapes, None)
            spelt = next(letters, None) if answer and not place and token not in self.special else None
            box = place or spelt or about
            named = dialogue.task not in UNNAMED
            focus.append(Focus(dialogue.picture, box, named) if answer and box else None)
        return focus


@dataclass
class Batch:
    """Padded sequences: ids, positions, segments [B, T] (segment -1 = padding), weights and classes [B, T].

    focus_rows, focus_tokens [n]: where a token is about to be predicted that speaks of a place; focus_patches [n, T]:
    the picture tokens of that place; focus_words [n, 2, T]: the tokens before it in its segment that name the colour
    and the kind of what is there.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    weights: Tensor
    classes: Tensor
    focus_rows: Tensor
    focus_tokens: Tensor
    focus_patches: Tensor
    focus_words: Tensor

    @property
    def mask(self) -> Tensor:
        """[B, 1, T, T], true where a token may look: back, at the prefix or its own segment."""
        mine, other = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((other == 0) | (other == mine)).tril()
        return (seen | torch.eye(self.ids.shape[1], dtype=torch.bool))[:, None]


def collate(sequences: list[Sequence], composer: Composer) -> Batch:
    """Pad to the longest sequence; the padding is also the id of picture tokens."""
    pad = composer.pad
    longest = max(len(s.ids) for s in sequences)

    def padded(name: str, value: float) -> Tensor:
        return torch.tensor([getattr(s, name) + [value] * (longest - len(s.ids)) for s in sequences])

    rows, tokens, patches, words = [], [], [], []
    for row, sequence in enumerate(sequences):
        pictures = [i for i, token in enumerate(sequence.ids) if token == pad]
        segments = np.array(sequence.segments)
        names = [np.isin(sequence.ids, ids) for ids in composer.names]
        for token, focus in enumerate(sequence.focus):
            if focus:
                seen = np.zeros(longest, bool)
                first = focus.picture * GRID * GRID
                seen[[pictures[first + cell] for cell in np.flatnonzero(covered(focus.box))]] = True
                before = np.zeros((2, longest), bool)
                if focus.named:
                    mine = segments[:token] == segments[token]
                    before[:, :token] = [mine & name[:token] for name in names]
                words.append(before)
                rows.append(row)
                tokens.append(token - 1)
                patches.append(seen)
    return Batch(
        padded("ids", pad),
        padded("positions", 0),
        padded("segments", -1),
        padded("weights", 0.0),
        padded("classes", 0),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(tokens, dtype=torch.int64),
        torch.from_numpy(np.stack(patches) if patches else np.zeros((0, longest), bool)),
        torch.from_numpy(np.stack(words) if words else np.zeros((0, 2, longest), bool)),
    )
