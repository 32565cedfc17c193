"""Questions of the evaluation, about scenes that no training sees; both languages ask about the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from tools.nano.talk.chatting import SINGLE, Conversation, next_turn
from tools.nano.talk.drawing import render
from tools.nano.talk.icons import KEPT_OUT
from tools.nano.talk.pictures import EVALUATION_SEED
from tools.nano.talk.questions import Asker, wordings
from tools.nano.talk.scenes import Change, Scene, Stock, change_scene, sample_scene
from tools.nano.talk.several import changed, in_picture, same, which
from tools.nano.talk.turns import LANGUAGES, Turn

SEVERAL = ("same", "changed", "which", "in_picture")
ASKED = ("where", "colour", "kind", "exists", "count", "read", "side")  # of first and later turns, of new wordings
PARTS = (*SINGLE, *SEVERAL, "first turn", "later turn", "new wordings", "new style")
_FAR = 10_000_000  # from a part's seeds to those of further pictures

__all__ = ["LANGUAGES", "PARTS", "Case", "cases"]


@dataclass(frozen=True)
class Case:
    """A conversation whose last turn is asked; the turns before it are given with their right answers."""

    talk: Conversation
    scenes: tuple[Scene, ...]
    stock: Stock

    @property
    def turn(self) -> Turn:
        """The turn that is scored."""
        return self.talk.turns[-1]

    def pictures(self) -> list[Image.Image]:
        """The rendered pictures."""
        return [render(scene, self.stock) for scene in self.scenes]


@lru_cache(maxsize=4)
def _stock(sprites: Path, *, new: bool) -> Stock:
    return Stock(sprites, (KEPT_OUT,)) if new else Stock(sprites)


def cases(part: str, count: int, language: str, sprites: Path) -> Iterator[Case]:
    """`count` cases of a part in one language."""
    stock = _stock(sprites, new=part == "new style")
    seed, made = EVALUATION_SEED + 1_000_000 * PARTS.index(part), 0
    while made < count:
        seed += 1
        rng = random.Random(f"ask-{part}-{seed}")
        case = _several(part, rng, seed, language, stock) if part in SEVERAL else _one(part, rng, seed, language, stock)
        if case:
            made += 1
            yield case


def _one(part: str, rng: random.Random, seed: int, language: str, stock: Stock) -> Case | None:
    scene = sample_scene(stock, seed)
    ask = Asker(rng, language, new=part == "new wordings")
    turns: Sequence[Turn | None]
    if part in SINGLE:
        turns = [SINGLE[part][0](ask, scene)]
    elif part == "new style":
        turns = [SINGLE[rng.choice(("kind", "caption", "exists"))][0](ask, scene)]
    elif part == "new wordings":
        task = rng.choice([task for task in ASKED if wordings()[task, language][1]])
        turns = [SINGLE[task][0](ask, scene)]
    else:  # the same question first, or after two to five others
        last = SINGLE[rng.choice(ASKED)][0](ask, scene)
        turns = [*_before(ask, scene, last, rng.randint(2, 5)), last] if part == "later turn" else [last]
    given = [turn for turn in turns if turn]
    return Case(Conversation(tuple(given), 1), (scene,), stock) if given and given[-1] is turns[-1] else None


def _before(ask: Asker, scene: Scene, last: Turn | None, count: int) -> list[Turn]:
    turns: list[Turn] = []
    for _ in range(20):
        turn = next_turn(ask, scene, turns[-1] if turns else None, tuple(SINGLE))
        if turn and last and turn.question not in (last.question, *(other.question for other in turns)):
            turns.append(turn)
        if len(turns) == count:
            break
    return turns


def _several(part: str, rng: random.Random, seed: int, language: str, stock: Stock) -> Case | None:
    ask = Asker(rng, language)
    first = sample_scene(stock, seed, (1, 4), 0.15)
    turn: Turn | None
    if part in ("same", "changed"):
        later, change = change_scene(stock, first, seed)
        if _skipped(part, change, rng):
            return None
        turn = (same if part == "same" else changed)(ask, change)
        return Case(Conversation((turn,), 2), (first, later), stock)
    others = [sample_scene(stock, seed + k * _FAR, (1, 3), 0.4) for k in range(1, rng.choice((2, 2, 3)))]
    scenes = (first, *others)
    turn = (which if part == "which" else in_picture)(ask, scenes)
    return Case(Conversation((turn,), len(scenes)), scenes, stock) if turn else None


def _skipped(part: str, change: Change, rng: random.Random) -> bool:
    """True for half of the pairs without a change, where the change is asked for."""
    return part == "changed" and change.what == "none" and rng.random() < 0.5
