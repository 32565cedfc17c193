"""Dialogues -> token sequences for training.

Many dialogues share the picture in front of them: each is a segment that sees the prefix and itself, with positions
that go on from the prefix, exactly as if it stood there alone. So a picture is encoded once for half a dozen answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.nano.dense import centre, covered
from tools.nano.focus import Focus
from tools.nano.phrases import COLOUR_ZH, KIND_ZH
from tools.nano.scenes import COLOURS, KINDS, Box
from tools.nano.tasks import Dialogue
from tools.nano.vocabulary import SYSTEM, Codec

WORDS_ABOUT = (
    "colour",
    "kind",
    "refer",
    "yes_no",
    "follow_up",
    "same",
    "changed",
    "which",
)  # all words about one thing
UNNAMED = ("caption", "read", "ocr", "refer", "same", "changed")  # what is spoken of is not named in words before
LAST_DIGIT_WEIGHT = 0.2  # a thousandth of the picture is a ninth of the model's pixel
TEXT_WEIGHT = 1.5  # letters are few among the tokens and the hardest to learn


@dataclass
class Sequence:
    """Lists of one length: ids, positions, segments (0 = the prefix), loss weights, classes and focus of tokens; of
    two pictures that were compared, how the patches of the second differ (dense.differences).
    """

    ids: list[int]
    positions: list[int]
    segments: list[int]
    weights: list[float]
    classes: list[int]  # 0 words, 1 coordinates, 2 text read from a sign
    focus: list[Focus | None]
    differences: list[int] | None = None


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
        labels = zip(*(codec.encode(f"Picture {n}: ") for n in "12"), strict=True)
        same = [one == other for one, other in labels]
        self.number = len(same) - same.index(False) + 1  # tokens from a picture's number to its first patch
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
                text = dialogue.task in ("read", "ocr") and not inside
                weight = LAST_DIGIT_WEIGHT if last else TEXT_WEIGHT if text else 1.0
                sequence.weights.append(float(answer) * weight)
                sequence.classes.append(1 if digit and not last else 2 if text else 0)
            sequence.focus += self._focus(dialogue, ids, answers)
            sequence.ids += ids
            sequence.positions += range(count, count + len(ids))
            sequence.segments += [number] * len(ids)
        return sequence

    def _focus(self, dialogue: Dialogue, ids: list[int], answers: list[bool]) -> list[Focus | None]:
        """The subject of each answer token: the place of its box, its letter, or the thing that all words are about."""
        shapes, letters = iter(dialogue.focus), iter(dialogue.letters)
        about: tuple[int, ...] = ()
        if dialogue.task == "count":  # one patch each, so that large things do not count more
            about = tuple(centre(box) for box in dialogue.focus)
        elif dialogue.focus and dialogue.task in WORDS_ABOUT:
            about = _cells(dialogue.focus[0])
        place = next(shapes, None) if dialogue.task == "caption" else None
        named = dialogue.task not in UNNAMED
        focus: list[Focus | None] = []
        for k, (token, answer) in enumerate(zip(ids, answers, strict=True)):
            if self.tags.get(ids[k - 1]) and k and answer:  # right after <box>, which a raw prompt holds itself
                place = next(shapes, None)
            elif token in self.tags:
                place = None
            elif dialogue.task == "caption" and token in self.separators:
                place = next(shapes, None)
            spelt = next(letters, None) if answer and not place and token not in self.special else None
            box = place or spelt
            cells = _cells(box) if box else about
            focus.append(Focus(dialogue.picture, cells, named) if answer and cells else None)
        return focus


def _cells(box: Box) -> tuple[int, ...]:
    return tuple(int(cell) for cell in np.flatnonzero(covered(box)))
