"""The written list of questions (questions.txt): wordings by task and language, those kept out of training apart."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

KEPT_OUT = "~"
_HEAD = re.compile(r"\[(\w+) (en|zh)\]")
LAST = "?.!\uff1f。\uff01"


@cache
def wordings() -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """By (task, language): the wordings that are trained on, and those that are kept out."""
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    lists: tuple[list[str], list[str]] = ([], [])
    for line in (Path(__file__).parent / "questions.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if head := _HEAD.fullmatch(line):
            lists = found[head[1], head[2]] = ([], [])
        else:
            lists[line.startswith(KEPT_OUT)].append(line.removeprefix(KEPT_OUT))
    return {key: (tuple(trained), tuple(kept)) for key, (trained, kept) in found.items()}


class Asker:
    """Words questions of one language. new: with the wordings kept out of training, where a task has some."""

    def __init__(self, rng: random.Random, language: str, *, new: bool = False, varied: bool = False):
        self.rng, self.language, self.new, self.varied = rng, language, new, varied

    def __call__(self, task: str, **words: str) -> str:
        """A question of a task; varied: punctuation and capitals sometimes as people leave them out."""
        trained, kept = wordings()[task, self.language]
        text = self.rng.choice(kept if self.new and kept else trained).format(**words)
        return self._varied(text) if self.varied else text

    def _varied(self, text: str) -> str:
        rng = self.rng
        if self.language == "zh":
            text = text.replace("?", "\uff1f").replace(",", "\uff0c") if rng.random() < 0.5 else text
        elif rng.random() < 0.15:
            text = text[0].lower() + text[1:]
        return text.rstrip(LAST) if rng.random() < 0.12 else text
