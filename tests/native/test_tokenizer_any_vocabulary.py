"""Ids equal tiktoken's on every code point and on vocabularies of any making."""

from __future__ import annotations

import random
from itertools import pairwise
from unicodedata import normalize

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.vocabularies import PATTERN, TINY, full_vocabulary, peers, vocabulary_file

ASSIGNABLE = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_every_code_point_in_several_contexts(name: str) -> None:
    ours, theirs = peers(TINY if name == "tiny" else full_vocabulary())
    for start in range(0, len(ASSIGNABLE), 4096):
        text = "".join(f"{char}a{char}a {char}\n1'{char}!" for char in ASSIGNABLE[start : start + 4096])
        assert ours.encode(text) == theirs.encode_ordinary(normalize("NFC", text))


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
    ours = Tokenizer(vocabulary_file(listed), {})
    ranks = {token: rank for rank, token in enumerate(listed)}
    theirs = tiktoken.Encoding("made up", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for length in (3, 10, 40, 150):
        text = bytes(generator.choices(alphabet, k=length)).decode()
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text


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
    ours = Tokenizer(vocabulary_file(listed), {})
    ranks = {token: rank for rank, token in enumerate(listed)}
    theirs = tiktoken.Encoding("made up", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for length in (3, 20, 200):
        sample = "".join(generator.choices(characters, k=length))
        assert ours.encode(sample) == theirs.encode_ordinary(sample)


def merged(parts: list[bytes], pair: tuple[bytes, ...]) -> list[bytes]:
    """The parts with every such pair of neighbours joined, from the left."""
    joined: list[bytes] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
