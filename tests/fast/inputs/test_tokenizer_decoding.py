"""Decoding gives the text that Python makes of the tokens' bytes, for every error policy."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.vocabularies import full_vocabulary, peers, special_tokens

FULL_SIZE = 151_643
END = special_tokens(FULL_SIZE)["<|im_end|>"]
# Every width of a str, the borders between them, words of one token and characters of several.
PIECES = [
    "plain words ",
    "international straightforwardness ",
    "-" * 40,
    "caf\u00e9 \u00ff",
    "\u0100\u07ff\u0800",
    "中文字符，的",
    "\u3400\u4dbf\u9fff",
    "\ud7ff\ue000\uffff",
    "\U00010000\U0010ffff",
    "\U0001f600\U0001f44d\U0001f3fd",
    "\x00\x7f\u0080",
]
# Bytes that are no UTF-8: torn characters, overlong forms, surrogates, beyond U+10FFFF.
TORN = ["e4b8", "b8ad", "c080", "e08080", "eda080", "edbfbf", "f0808080", "f4908080", "f09f98", "ff", "80"]


def bytes_to_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One id for every byte: the first 256 ranks are those."""
    found = {tokenizer.decode_bytes([rank])[0]: rank for rank in range(256)}
    return [found[byte] for byte in data]


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return peers(full_vocabulary())[0]


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    data = b"".join(tokenizer.decode_bytes([token]) for token in ids)
    assert tokenizer.decode_bytes(ids) == data
    for errors in ("replace", "ignore", "backslashreplace", "surrogateescape"):
        expected = data.decode("utf-8", errors)
        text = tokenizer.decode(ids, errors=errors)
        assert text == expected
    try:
        expected = data.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(UnicodeDecodeError) as caught:
            tokenizer.decode(ids, errors="strict")
        assert (caught.value.start, caught.value.end, caught.value.reason) == (error.start, error.end, error.reason)
    else:
        assert tokenizer.decode(ids, errors="strict") == expected


@pytest.mark.parametrize("torn", TORN)
def test_bytes_that_are_no_text(full: Tokenizer, torn: str) -> None:
    bad = bytes_to_ids(full, bytes.fromhex(torn))
    for text in PIECES:
        around = full.encode(text) * 60
        for ids in (around + bad, bad + around, around + bad + around, around + bad * 100):
            check(full, ids)


def ids_of(text: str) -> list[int]:
    return peers(full_vocabulary())[0].encode(text)


def ids_of_torn(text: str) -> list[int]:
    return bytes_to_ids(peers(full_vocabulary())[0], bytes.fromhex(text))


runs = st.tuples(
    st.one_of(
        st.sampled_from(PIECES).map(ids_of),
        st.lists(st.integers(0, FULL_SIZE - 1), min_size=1, max_size=5),
        st.sampled_from(TORN).map(ids_of_torn),
        st.just([END]),
    ),
    st.integers(1, 90),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(runs, max_size=8))
@example([([END], 300)])
def test_runs_of_anything(pieces: list[tuple[list[int], int]]) -> None:
    full = peers(full_vocabulary())[0]
    check(full, [token for ids, times in pieces for token in ids * times])


@pytest.mark.parametrize("last", ["ness", " ", "-" * 40, "的", "\U0001f600"])
@pytest.mark.parametrize("before", range(508, 516))
def test_plain_words_after_a_wide_beginning(full: Tokenizer, before: int, last: str) -> None:
    """Long tokens of ASCII in each place of the batches of 512 ids, after a text that needs wide characters."""
    words = full.encode("international straightforwardness ")
    for beginning in ("中", "\U0001f600"):
        wide = (full.encode(beginning) * before)[:before]
        for count in (64, 509, 512):
            check(full, wide + (words * count)[:count] + full.encode(last))


def test_every_token(full: Tokenizer) -> None:
    for start in range(0, FULL_SIZE, 1000):
        ids = list(range(start, min(start + 1000, FULL_SIZE)))
        data = full.decode_bytes(ids)
        assert full.decode(ids) == data.decode("utf-8", "replace")
