"""Twenty megabytes of every kind of text: ids equal tiktoken's, and decoding gives the text back.

Written words come from the standard library's own files, everything else from a generator with a fixed seed.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from support.vocabularies import full_vocabulary, peers

KIND_BYTES = 2_000_000
STRETCH = 100_000  # characters compared at a time, so that a difference shows near its place

COMMON_CHINESE = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小"
)
ARABIC = "".join(map(chr, [*range(0x620, 0x64B), *range(0x64B, 0x653)]))
HEBREW = "".join(map(chr, range(0x5D0, 0x5EB)))
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇨🇳", "1️⃣", "😀", "❤️", "\U0001faf6", "\u200d", "\ufe0f"]
MARKS = "".join(map(chr, [*range(0x300, 0x370), *range(0x1DC0, 0x1DFF), *range(0x20D0, 0x20F0)]))
CONTROLS = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x2028, 0xFEFF, 0xFFFD, 0x10FFFF]))


def english(generator: random.Random) -> str:
    topics = list(pydoc_data.topics.topics.values())
    return "".join(generator.choices(topics, k=6))


def code(generator: random.Random) -> str:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "".join(path.read_text("utf-8", "replace") for path in generator.choices(files, k=3))


def chinese(generator: random.Random) -> str:
    rare = "".join(chr(generator.randrange(0x4E00, 0xA000)) for _ in range(2000))
    words = generator.choices(COMMON_CHINESE * 60 + rare + "，。！？、《》“”……\n 3", k=20_000)
    return "".join(words)


def nested_json(generator: random.Random) -> str:
    def value(depth: int) -> object:
        kind = generator.randrange(6 if depth else 4)
        if kind == 0:
            return generator.uniform(-1e6, 1e6)
        if kind == 1:
            return generator.choice([None, True, generator.randrange(10**9)])
        if kind in (2, 3):
            return "".join(generator.choices('abcé中\n"\\ /😀_0', k=generator.randrange(12)))
        if kind == 4:
            return [value(depth - 1) for _ in range(4)]
        return {f"key_{generator.randrange(99)}": value(depth - 1) for _ in range(4)}

    values = [value(5) for _ in range(50)]
    return json.dumps(values, indent=generator.choice([None, 2, 4]), ensure_ascii=generator.random() < 0.5)


def emoji(generator: random.Random) -> str:
    return "".join(generator.choices([*EMOJI, " ", "ok", "!"], k=5000))


def right_to_left(generator: random.Random) -> str:
    letters = generator.choice([ARABIC, HEBREW]) * 3
    return "".join(generator.choices(letters + "    ،؟.\u200f\n12", k=10_000))


def zalgo(generator: random.Random) -> str:
    return "".join(
        letter + "".join(generator.choices(MARKS, k=generator.randrange(8)))
        for letter in generator.choices("Zalgo comes eéḿ中ก", k=3000)
    )


def controls(generator: random.Random) -> str:
    return "".join(generator.choices(CONTROLS + "abc \r\n\t", k=10_000))


def any_character(generator: random.Random) -> str:
    points = (generator.randrange(0x110000) for _ in range(10_000))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


KINDS: list[Callable[[random.Random], str]] = [
    english,
    code,
    chinese,
    nested_json,
    emoji,
    right_to_left,
    zalgo,
    controls,
    any_character,
]


def mixture(generator: random.Random) -> str:
    """Short pieces of all kinds side by side, cut anywhere."""
    texts = [kind(generator) for kind in KINDS]
    starts = [(text, generator.randrange(len(text))) for text in generator.choices(texts, k=2000)]
    return "".join(text[start : start + generator.randrange(1, 40)] for text, start in starts)


def text_of(kind: Callable[[random.Random], str]) -> str:
    generator = random.Random(kind.__name__)
    parts: list[str] = []
    size = 0
    while size < KIND_BYTES:
        parts.append(kind(generator))
        size += len(parts[-1].encode())
    return "".join(parts)


@pytest.mark.parametrize("kind", [*KINDS, mixture], ids=lambda kind: kind.__name__)
def test_two_megabytes_of(kind: Callable[[random.Random], str]) -> None:
    ours, theirs = peers(full_vocabulary())
    text = text_of(kind)
    for start in range(0, len(text), STRETCH):
        stretch = normalize("NFC", text[start : start + STRETCH])
        ids = ours.encode(stretch)
        assert ids == theirs.encode_ordinary(stretch)
        assert ours.count(stretch) == len(ids)
        assert ours.decode(ids) == stretch
