"""Ids equal tiktoken's on generated text and on awkward runs; tests/native has every code point and more."""

from __future__ import annotations

import random
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.vocabularies import TINY, cores, full_vocabulary, peers, vocabulary_file

# Where the pattern's alternatives meet: contractions (also of the long s), line ends, odd spaces, marks, numbers.
EDGES = st.text(
    st.sampled_from("aAsStTrReEvVmMlLdDé中\u017f\u212a'’ \t\r\n\u00a0\u2028\u0085\x1c1²Ⅷ!_-\u0301\u200d\U0001f600")
)


def check(path: Path, text: str) -> None:
    ours, theirs = peers(path)
    normal = normalize("NFC", text)
    wanted = theirs.encode_ordinary(normal)
    assert ours.encode(text) == wanted
    for core in cores(path):
        assert core.encode(normal, []) == wanted


@pytest.fixture(params=["tiny", "full"])
def vocabulary(request: pytest.FixtureRequest) -> Path:
    return TINY if request.param == "tiny" else full_vocabulary()


@settings(max_examples=500, deadline=None)
@given(st.text())
@example("'\u017fa 'ſt 'Sx 'LL 'lx")
@example("a  b   \n \n  c\r\n\r\n  ")
def test_any_text(text: str) -> None:
    check(TINY, text)
    check(full_vocabulary(), text)


@settings(max_examples=1000, deadline=None)
@given(EDGES)
def test_texts_at_the_edges_of_the_pattern(text: str) -> None:
    check(TINY, text)
    check(full_vocabulary(), text)


@settings(max_examples=500, deadline=None)
@given(
    st.text(st.sampled_from("aStreVmLl7'' \t\r\n!(_"), min_size=60, max_size=300),
    st.sampled_from(["", "é", "中", "\u3000"]),
)
@example("  \n \n  x\n\n" * 9 + "!\r\n " * 12 + "'re" * 30, "\u00a0")
def test_blocks_of_ascii(text: str, between: str) -> None:
    """The scanner takes 64 bytes at a time; what is no ASCII ends a block anywhere."""
    check(TINY, text[: len(text) // 2] + between + text[len(text) // 2 :])
    check(full_vocabulary(), text[: len(text) // 2] + between + text[len(text) // 2 :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 151642), max_size=30))
def test_texts_made_of_tokens(ids: list[int]) -> None:
    ours, _ = peers(full_vocabulary())
    check(full_vocabulary(), ours.decode(ids))


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "\r\n", "7", "中", "é", "!", "\u0301", "ab", "\U0001f600", "的一", " a"]
)
@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129, 1000, 20_000])
def test_long_runs(vocabulary: Path, unit: str, length: int) -> None:
    check(vocabulary, unit * length)
    check(vocabulary, "x" + unit * length + "y")


def test_long_random_letters(vocabulary: Path) -> None:
    generator = random.Random(0)
    for letters in ("ab", "etaoinshrdlu", "的一是不了人我在有他这"):
        check(vocabulary, "".join(generator.choices(letters, k=20_000)))


MIXED = {
    "english": "The driver's seat wasn't moved; they'll say it's 3.14159% \u2014 or so we've HEARD.  ",
    "chinese": "图中有一只红色的杯子，放在桌子上。旁边是一本打开的书；共有3本！",
    "code": "def f(x: int) -> str:\n\treturn f'{x!r}'  # done\n\n\nif __name__ == '__main__':\r\n    f(1_000)\n",
    "json": '{"a": [1, 2.5e-3, null], "b\\u00e9": "\\n", "c": {}}\n',
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 ok 🇨🇳🇺🇸!!",
    "right_to_left": "مرحبا بالعالم، כיצד אתה? ",
    "marks": "Z\u0351\u036b\u0343a\u0300\u0301l\u0327g\u0328o\u0334 e\u0301\u0302 ",
    "control": "\x00\x01\x1b[0m\x7f\u200b\ufeff\ufffd\U0010ffff",
    "others": "Привет, мир! こんにちは世界 안녕하세요 हिन्दी ไทย ",
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_text(vocabulary: Path, name: str) -> None:
    generator = random.Random(name)
    text = MIXED[name] * 200
    check(vocabulary, text)
    characters = list(text)
    generator.shuffle(characters)
    check(vocabulary, "".join(characters))


def test_very_long_token() -> None:
    """A vocabulary with a token of a megabyte loads and is used at once: work per token is linear in its length."""
    listed = [bytes([i]) for i in range(256)] + [b"a" * 2**power for power in range(1, 21)]
    ours = Tokenizer(vocabulary_file(listed), {})
    assert ours.encode("a" * 2**20) == [len(listed) - 1]
    assert ours.encode("a" * (2**20 - 1)) == [*reversed(range(256, len(listed) - 1)), ord("a")]
