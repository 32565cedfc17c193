"""The tokenizer's contract: published ids, special tokens by policy only, counting, decoding."""

from __future__ import annotations

import threading
from unicodedata import combining, decomposition, normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge import _core
from qwenvl_edge.errors import PromptError
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.vocabularies import TINY, full_vocabulary, golden, peers, special_tokens, vocabulary_file

IMAGE_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
SPECIALS = special_tokens(2000)


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return peers(full_vocabulary())[0]


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return peers(TINY)[0]


@pytest.mark.parametrize("case", golden()["encode_all_special"], ids=lambda case: case["text"][:20])
def test_published_ids_with_all_special_tokens(full: Tokenizer, case: dict) -> None:
    assert full.encode(case["text"], allowed_special="all") == case["ids"]


@pytest.mark.parametrize("case", golden()["encode_image_st_only"], ids=lambda case: case["text"][:20])
def test_published_ids_with_the_image_tags_only(full: Tokenizer, case: dict) -> None:
    assert full.encode(case["text"], allowed_special=IMAGE_TAGS) == case["ids"]


@pytest.mark.parametrize("part", ["decode", "decode_partial_utf8"])
def test_published_texts(full: Tokenizer, part: str) -> None:
    for case in golden()[part]:
        assert full.decode(case["ids"]) == case["text"]


def test_text_is_normalised_first(full: Tokenizer) -> None:
    assert full.encode("e\u0301") == full.encode("\u00e9")
    assert full.count("e\u0301") == len(full.encode("\u00e9"))


def test_no_text_is_a_special_token_unless_allowed(tiny: Tokenizer) -> None:
    text = "<|im_start|>user<|im_end|>"
    plain = tiny.encode(text)
    assert max(plain) < tiny.rank_count and tiny.decode(plain) == text
    assert tiny.encode(text, allowed_special={"<|im_end|>"})[-1] == SPECIALS["<|im_end|>"]
    assert tiny.encode(text, allowed_special="all") == [
        SPECIALS["<|im_start|>"],
        *tiny.encode("user"),
        SPECIALS["<|im_end|>"],
    ]


def test_the_longest_special_token_wins_at_one_place() -> None:
    single = [bytes([i]) for i in range(256)]
    tokenizer = Tokenizer(vocabulary_file(single), {"<a": 300, "<a>": 301, "b<": 302})
    assert tokenizer.encode("<a>b<a<", allowed_special="all") == [301, 302, ord("a"), ord("<")]


@pytest.mark.parametrize("allowed", [["<nothing>"], "<img>", {"<img>", "img"}])
def test_unknown_special_tokens_are_refused(tiny: Tokenizer, allowed: object) -> None:
    with pytest.raises(PromptError, match="allowed_special"):
        tiny.encode("text", allowed_special=allowed)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ud83d \ude00"])
def test_lone_surrogates_are_refused(tiny: Tokenizer, text: str) -> None:
    for call in (tiny.encode, tiny.count):
        with pytest.raises(PromptError, match="lone surrogate"):
            call(text)


@given(st.text(), st.booleans())
def test_count_is_the_length_of_the_ids(text: str, special: bool) -> None:
    tokenizer = peers(TINY)[0]
    text += "<img>" if special else ""
    allowed = "all" if special else ()
    assert tokenizer.count(text, allowed_special=allowed) == len(tokenizer.encode(text, allowed_special=allowed))


def test_what_is_surely_normal_is_normal_beside_any_text() -> None:
    """No character of it changes under normalisation, combines with what stands before it, or is reordered."""
    points = [chr(point) for point in range(0x10000) if not 0xD800 <= point < 0xE000]
    sure = [char for char in points if _core.surely_normal(char + "\u4e00")]
    assert len(sure) > 20_000
    pairs = [decomposition(char).split() for char in points if not decomposition(char).startswith("<")]
    second = {pair[1] for pair in pairs if len(pair) == 2}
    for char in sure:
        assert normalize("NFC", char) == char and combining(char) == 0
        assert f"{ord(char):04X}" not in second
    assert not _core.surely_normal("e\u0301") and not _core.surely_normal("か\u3099")
    assert not _core.surely_normal("\U0001f600"), "characters of four bytes are left to Python"


def test_one_tokenizer_serves_many_threads(tiny: Tokenizer) -> None:
    texts = [f"words and {i} numbers, 中文 " * 20 for i in range(40)]
    wanted = [tiny.encode(text) for text in texts]
    results: list[list[list[int]]] = [[] for _ in range(4)]

    def work(slot: int) -> None:
        results[slot] = [tiny.encode(text) for text in texts]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [wanted] * 4


@pytest.mark.parametrize("container", [list, tuple, np.int64, np.int32, np.uint16])
def test_ids_come_as_sequences_or_arrays(tiny: Tokenizer, container: type) -> None:
    ids = tiny.encode("Hello, 世界")
    given_ids = np.array(ids, container) if issubclass(container, np.generic) else container(ids)
    assert tiny.decode(given_ids) == "Hello, 世界"
    assert tiny.decode_bytes(given_ids) == "Hello, 世界".encode()


def test_strided_arrays_are_read_right(tiny: Tokenizer) -> None:
    ids = np.array(tiny.encode("Hello, 世界"))
    assert tiny.decode(np.repeat(ids, 2)[::2]) == "Hello, 世界"


@pytest.mark.parametrize("ids", [np.zeros((2, 2), np.int64), np.zeros(2, np.float32), 5, [1.5], ["1"]])
def test_what_is_no_list_of_ids_is_a_type_error(tiny: Tokenizer, ids: object) -> None:
    with pytest.raises(TypeError):
        tiny.decode(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("token_id", [-1, 2217, 10**12])
def test_ids_without_a_token_are_refused(tiny: Tokenizer, token_id: int) -> None:
    with pytest.raises(PromptError, match=f"token id {token_id} has no text"):
        tiny.decode([0, token_id])


def test_decoding_follows_the_error_policy() -> None:
    tokenizer = Tokenizer(vocabulary_file([bytes([i]) for i in range(256)]), {})
    assert tokenizer.decode([97, 0xE4, 0xB8]) == "a\ufffd"
    assert tokenizer.decode([97, 0xE4, 0xB8], errors="ignore") == "a"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([97, 0xE4, 0xB8], errors="strict")


def test_properties(tiny: Tokenizer) -> None:
    assert tiny.rank_count == 2000
    assert tiny.special_tokens == SPECIALS


@given(st.lists(st.integers(0, 151642), max_size=40), st.sampled_from(["replace", "strict", "ignore"]))
def test_text_is_what_python_makes_of_the_bytes(ids: list[int], errors: str) -> None:
    """Ids in any order, so mostly torn characters."""
    tokenizer = peers(full_vocabulary())[0]
    try:
        expected = tokenizer.decode_bytes(ids).decode("utf-8", errors)
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            tokenizer.decode(ids, errors=errors)
    else:
        assert tokenizer.decode(ids, errors=errors) == expected


@given(st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_give_the_text_that_python_gives(values: list[int]) -> None:
    tokenizer = Tokenizer(vocabulary_file([bytes([value]) for value in range(256)]), {})
    assert tokenizer.decode(values) == bytes(values).decode("utf-8", "replace")


class _Index:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __index__(self) -> int:
        self.ids.clear()
        return 97


def test_ids_of_other_types_are_read_with_care(tiny: Tokenizer) -> None:
    ids = tiny.encode("words")
    assert tiny.decode([np.int64(ids[0]), *ids[1:]]) == "words"
    assert tiny.decode([True, False]) == tiny.decode([1, 0])
    changing: list = [1, 2, 3]
    changing.insert(0, _Index(changing))
    with pytest.raises(PromptError, match="changed while they were read"):
        tiny.decode(changing)
