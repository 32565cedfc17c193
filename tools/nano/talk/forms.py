"""Answers in a family's notation of places, with what each character of them is about."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.nano.scenes import Box
from tools.nano.talk.turns import Part, Places, Said

WORDS, DIGITS, TEXT = range(3)  # classes of what is written
GRID = 1000


@dataclass(frozen=True)
class Mark:
    """Characters start..end of an answer: their class, and the places of picture `picture` that they are about."""

    start: int
    end: int
    kind: int
    focus: tuple[Box, ...]
    picture: int


@dataclass
class Written:
    """An answer as text, and its marks in their order."""

    text: str = ""
    marks: list[Mark] = field(default_factory=list)

    def add(self, text: str, kind: int = WORDS, focus: tuple[Box, ...] = (), picture: int = 0) -> None:
        """Append characters that are about the same places."""
        if text:
            self.marks.append(Mark(len(self.text), len(self.text) + len(text), kind, focus, picture))
            self.text += text

    def spell(self, text: str, letters: Sequence[Box], picture: int) -> None:
        """Append text read from a sign, each letter with its place; words before it have none."""
        before = len(text) - len(letters)
        self.add(text[:before])
        for letter, box in zip(text[before:], letters, strict=True):
            self.add(letter, TEXT, (box,), picture)


def on_grid(values: Sequence[float]) -> list[int]:
    """Fractions of a picture's sides as a model writes them."""
    return [min(max(int(value * GRID), 0), GRID - 1) for value in values]


def middle(box: Box) -> tuple[float, float]:
    """The middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


class Form(ABC):
    """The notation of one family."""

    def write(self, parts: Sequence[Part]) -> Written:
        """An answer of these parts."""
        written = Written()
        for part in parts:
            if isinstance(part, Places):
                self.places(written, part)
            elif isinstance(part, Said) and part.letters:
                written.spell(part.text, part.letters, part.picture)
            else:
                written.add(part.text, WORDS, part.focus, part.picture)
        return written

    @abstractmethod
    def places(self, written: Written, part: Places) -> None:
        """Append boxes or points with their label."""


class JsonForm(Form):
    """Qwen3-VL's: a list of objects in a fence."""

    def places(self, written: Written, part: Places) -> None:
        """See Form.places."""
        written.add("```json\n[")
        for number, box in enumerate(part.boxes):
            numbers = on_grid(middle(box) if part.point else box)
            written.add(f'{"," if number else ""}\n\t{{"{"point_2d" if part.point else "bbox_2d"}": ', WORDS, (box,))
            written.add(json.dumps(numbers), DIGITS, (box,), part.picture)
            written.add(f', "{"text_content" if part.reads else "label"}": "', WORDS)
            if part.reads:
                written.spell(part.label, part.letters, part.picture)
            else:
                written.add(part.label, WORDS, (box,), part.picture)
            written.add('"}')
        written.add("\n]\n```")


class TagForm(Form):
    """Qwen-VL's: a phrase and its boxes in tags; it has no points, a box stands for one."""

    def places(self, written: Written, part: Places) -> None:
        """See Form.places."""
        written.add("<ref>")
        if part.reads:
            written.spell(part.label, part.letters, part.picture)
        else:
            written.add(part.label, WORDS, part.boxes[:1], part.picture)
        written.add("</ref>")
        for box in part.boxes:
            x0, y0, x1, y1 = on_grid(box)
            written.add("<box>")
            written.add(f"({x0},{y0}),({x1},{y1})", DIGITS, (box,), part.picture)
            written.add("</box>")
