"""Turns of a conversation as their makers give them: no family's notation, but with what each word is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tools.nano.scenes import Box
from tools.nano.talk.kinds import COLOUR_ZH, KINDS
from tools.nano.talk.scenes import Scene, Thing

LANGUAGES = ("en", "zh")
Names = tuple[str | None, str | None]  # colour and kind; None leaves it open


@dataclass(frozen=True)
class Said:
    """Words of an answer. focus: the places that they speak of. letters: one place for each letter read from a sign."""

    text: str
    focus: tuple[Box, ...] = ()
    letters: tuple[Box, ...] = ()
    picture: int = 0


@dataclass(frozen=True)
class Places:
    """Boxes, or points in their middle, with their label; reads: the label is text that stands there."""

    label: str
    boxes: tuple[Box, ...]
    point: bool = False
    reads: bool = False
    letters: tuple[Box, ...] = ()
    picture: int = 0


Part = Said | Places


@dataclass(frozen=True)
class Turn:
    """One question and its answer. names: the words of the question that name what it is about. truth: what an answer
    is scored by. thing: what "it" means afterwards.
    """

    task: str
    question: str
    answer: tuple[Part, ...]
    names: tuple[str, ...] = ()
    truth: dict[str, Any] = field(default_factory=dict)
    thing: Thing | None = None


def matches(scene: Scene, names: Names) -> list[Thing]:
    """The things that a colour and a kind (or None) describe."""
    colour, kind = names
    return [t for t in scene.things if colour in (None, t.colour) and kind in (None, t.kind)]


def certain(scene: Scene, names: Names) -> bool:
    """Tell if it is clear which things a description fits: no thing without a name for its colour is in question."""
    colour, kind = names
    return colour is None or all(t.colour for t in scene.things if kind in (None, t.kind))


def phrase(names: Names, language: str) -> str:
    """Words for things, such as red mug, mug, red object; 红色的杯子, 杯子, 红色的东西."""
    colour, kind = names
    if language == "zh":
        noun = KINDS[kind].chinese if kind else "东西"
        return f"{COLOUR_ZH[colour]}的{noun}" if colour else noun
    return f"{colour + ' ' if colour else ''}{kind or 'object'}"


def plural(names: Names, language: str) -> str:
    """Plural, such as red mugs, red objects; Chinese nouns have none."""
    colour, kind = names
    if language == "zh":
        return phrase(names, language) if colour or kind else "物体"
    return f"{colour + ' ' if colour else ''}{KINDS[kind].plural if kind else 'objects'}"


def article(text: str) -> str:
    """Words after their article, such as a red mug, an umbrella."""
    return f"{'an' if text[0] in 'aeio' or text.startswith('umb') else 'a'} {text}"


def the(names: Names, language: str) -> str:
    """A known thing, such as the red mug; 红色的杯子."""
    one = phrase(names, language)
    return one if language == "zh" else f"the {one}"


def one(names: Names, language: str) -> str:
    """Any such thing, such as a red mug; 红色的杯子."""
    return phrase(names, language) if language == "zh" else article(phrase(names, language))


def names_of(thing: Thing) -> Names:
    """Colour and kind of a thing, as a caption names it."""
    return thing.colour, thing.kind


def sentence(text: str, language: str) -> str:
    """A sentence of words: first letter in upper case, a full stop."""
    return f"{text}。" if language == "zh" else f"{text[0].upper()}{text[1:]}."


def nothing_there(what: str, language: str) -> str:
    """Answer that the thing asked for is not in the picture."""
    return f"图中没有{what}。" if language == "zh" else f"There is no {what} in the picture."
