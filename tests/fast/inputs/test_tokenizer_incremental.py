"""Text as it comes: whole characters, Python's replacement rules, and stop strings across token borders."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenvl_edge.errors import PromptError
from qwenvl_edge.inputs.tokenizer import IncrementalDecoder, Tokenizer
from support.vocabularies import TINY, full_vocabulary, golden, peers, vocabulary_file

# Every byte a token, so that any byte string in any cut can be fed.
BYTES = Tokenizer(vocabulary_file([bytes([i]) for i in range(256)]), {})
WORDS = Tokenizer(vocabulary_file([bytes([i]) for i in range(256)] + [b"ab", b"ba", b"abab", b"bba"]), {})


def pieces(decoder: IncrementalDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


def cut_at_stops(text: str, stops: list[str]) -> str:
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


UTF8_FRAGMENTS = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.text(max_size=3).map(str.encode),
        st.sampled_from(
            [b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90", b"\xe0\x80", b"\xff"]
        ),
    )
).map(b"".join)


@settings(max_examples=500)
@given(UTF8_FRAGMENTS)
@example(b"\xf0\x9f\x98")
@example(b"\xf0\x80\x80\xe4\xb8\xadx")
def test_joined_pieces_are_the_replaced_text(data: bytes) -> None:
    assert "".join(pieces(BYTES.incremental(), list(data))) == data.decode("utf-8", "replace")


@given(st.text())
def test_no_piece_is_torn(text: str) -> None:
    data = text.encode()
    shown = b""
    decoder = BYTES.incremental()
    for fed, byte in enumerate(data, 1):
        shown += decoder.push(byte).encode()
        # Exactly the whole characters so far: nothing torn, nothing late.
        assert shown == data[:fed].decode("utf-8", "ignore").encode()
    assert decoder.finish() == ""


def test_published_partial_characters() -> None:
    tokenizer, _ = peers(full_vocabulary())
    for case in golden()["decode_partial_utf8"]:
        assert "".join(pieces(tokenizer.incremental(), case["ids"])) == case["text"]


STOPS = st.lists(st.text(st.sampled_from("ab中"), min_size=1, max_size=5), max_size=4)


@settings(max_examples=1000)
@given(st.lists(st.sampled_from([*range(97, 99), 256, 257, 258, 259, 0xE4, 0xB8, 0xAD]), max_size=25), STOPS)
def test_text_ends_at_the_earliest_stop_string(ids: list[int], stops: list[str]) -> None:
    text = WORDS.decode(ids)
    decoder = WORDS.incremental(stop=stops)
    assert "".join(pieces(decoder, ids)) == cut_at_stops(text, stops)
    assert (decoder.stopped is None) == (cut_at_stops(text, stops) == text)


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab"), max_size=25), STOPS)
def test_text_is_held_back_only_while_it_may_be_a_stop_string(text: str, stops: list[str]) -> None:
    decoder = BYTES.incremental(stop=stops)
    shown = ""
    for fed in range(1, len(text) + 1):
        shown += decoder.push(ord(text[fed - 1]))
        if decoder.stopped:
            break
        so_far = text[:fed]
        starts = (
            n for n in range(fed) if any(stop.startswith(so_far[n:]) or so_far.startswith(stop, n) for stop in stops)
        )
        assert shown == so_far[: next(starts, fed)]


def test_stop_strings_across_tokens() -> None:
    tokenizer, _ = peers(TINY)
    decoder = tokenizer.incremental(stop=["Human:", "\n\n"])
    out = [decoder.push(token_id) for token_id in tokenizer.encode("Hum of bees. Human: next")]
    assert "".join(out) == "Hum of bees. "
    assert decoder.stopped == "Human:"
    assert decoder.finish() == "" and decoder.push(ord("a")) == ""


def test_a_longer_stop_string_that_began_earlier_wins() -> None:
    decoder = BYTES.incremental(stop=["cd", "abcdef"])
    assert [decoder.push(byte) for byte in b"xabcd"] == ["x", "", "", "", ""]
    assert decoder.stopped is None
    assert decoder.push(ord("e")) == "" and decoder.push(ord("f")) == ""
    assert decoder.stopped == "abcdef"
    decoder = BYTES.incremental(stop=["cd", "abcdef"])
    assert "".join(decoder.push(byte) for byte in b"xabcd!") == "xab"
    assert decoder.stopped == "cd"
    decoder = BYTES.incremental(stop=["cd", "abcdef"])
    assert "".join(pieces(decoder, list(b"xabcd"))) == "xab"
    assert decoder.stopped == "cd"


def test_special_tokens_give_their_text() -> None:
    tokenizer, _ = peers(TINY)
    assert tokenizer.incremental().push(tokenizer.special_tokens["<box>"]) == "<box>"


def test_bad_arguments() -> None:
    with pytest.raises(PromptError, match="stop string is empty"):
        BYTES.incremental(stop=["a", ""])
    with pytest.raises(PromptError, match="token id 256 has no text"):
        BYTES.incremental().push(256)
