"""Ids equal tiktoken's on every code point and on vocabularies of any making."""

from __future__ import annotations

import random
from itertools import pairwise
from unicodedata import normalize

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from support.vocabularies import PATTERN, TINY, both_cores, cores, full_vocabulary, peers, vocabulary_file

ASSIGNABLE = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_every_code_point_in_several_contexts(name: str) -> None:
    path = TINY if name == "tiny" else full_vocabulary()
    theirs = peers(path)[1]
    for start in range(0, len(ASSIGNABLE), 4096):
        text = "".join(f"{char}a{char}a {char}\n1'{char}!" for char in ASSIGNABLE[start : start + 4096])
        normal = normalize("NFC", text)
        for core in cores(path):
            assert core.encode(normal, []) == theirs.encode_ordinary(normal)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 60), st.integers(2, 5))
def test_vocabularies_that_no_trainer_would_make(generator: random.Random, extra: int, letters: int) -> None:
    """Tokens that merging never reaches, or reaches through later tokens, and single bytes at any rank."""
    alphabet = b"abcde"[:letters]
    tokens = {bytes(generator.choices(alphabet, k=generator.randint(2, 6))) for _ in range(extra)}
    listed = sorted(tokens) + [bytes([i]) for i in range(256)]
    if generator.random() < 0.5:
        listed = [bytes([i]) for i in range(256)] + sorted(tokens, key=lambda token: (len(token), token))
    else:
        generator.shuffle(listed)
    check_made_up(listed, ["".join(generator.choices(alphabet.decode(), k=length)) for length in (3, 10, 40, 150)])


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 80))
def test_tokens_that_end_inside_characters(generator: random.Random, merges: int) -> None:
    """Merges of random neighbours, as a trainer makes them, also across the bytes of characters."""
    characters = "\u4e2d\u4e2e\u4f2de\u00e9 "
    text = "".join(generator.choices(characters, k=400)).encode()
    parts = [bytes([byte]) for byte in text]
    listed = [bytes([i]) for i in range(256)]
    while len(parts) > 1 and len(listed) < 256 + merges:
        pair = tuple(generator.choice(list(pairwise(parts))))
        parts = merged(parts, pair)
        if b"".join(pair) not in listed:
            listed.append(b"".join(pair))
    check_made_up(listed, ["".join(generator.choices(characters, k=length)) for length in (3, 20, 200)])


def check_made_up(listed: list[bytes], texts: list[str]) -> None:
    ranks = {token: rank for rank, token in enumerate(listed)}
    theirs = tiktoken.Encoding("made up", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in texts:
        for core in both_cores(vocabulary_file(listed)):
            ids = core.encode(text, [])
            assert ids == theirs.encode_ordinary(text)
            assert core.decode(ids, "strict") == text


def merged(parts: list[bytes], pair: tuple[bytes, ...]) -> list[bytes]:
    """The parts with every such pair of neighbours joined, from the left."""
    joined: list[bytes] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
