"""The tokenizer's contract: published ids, special tokens by policy only, counting, truncation, decoding."""

from __future__ import annotations

import threading
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TINY, full_vocabulary, golden, peers, special_tokens, vocabulary_file

from qwenvl_edge.errors import PromptError
from qwenvl_edge.tokenizer import Tokenizer

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
    assert full.truncate("e\u0301", 5) == "\u00e9"


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
    calls = (tiny.encode, tiny.count, lambda t: tiny.truncate(t, 3), lambda t: tiny.encode_batch(["fine", t]))
    for call in calls:
        with pytest.raises(PromptError, match="lone surrogate"):
            call(text)


@given(st.text(), st.booleans())
def test_count_is_the_length_of_the_ids(text: str, special: bool) -> None:
    tokenizer = peers(TINY)[0]
    text += "<img>" if special else ""
    allowed = "all" if special else ()
    assert tokenizer.count(text, allowed_special=allowed) == len(tokenizer.encode(text, allowed_special=allowed))


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab 中文é\U0001f600\u0301\n'!1"), max_size=40), st.integers(0, 20))
def test_truncation_is_a_prefix_within_the_limit(text: str, limit: int) -> None:
    tokenizer = peers(TINY)[0]
    whole = normalize("NFC", text)
    kept = tokenizer.truncate(text, limit)
    assert whole.startswith(kept)
    assert tokenizer.count(kept) <= limit
    if tokenizer.count(text) <= limit:
        assert kept == whole


def test_truncation_keeps_as_many_whole_tokens_as_fit(tiny: Tokenizer) -> None:
    text = "the quick brown fox, 中文 and <img>more"
    ids = tiny.encode(text, allowed_special="all")
    for limit in range(len(ids)):
        kept = tiny.truncate(text, limit, allowed_special="all")
        longest = next(n for n in range(limit, -1, -1) if "\ufffd" not in tiny.decode(ids[:n]))
        assert kept == tiny.decode(ids[:longest])


def test_truncation_to_a_negative_number_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(PromptError, match="-1 tokens"):
        tiny.truncate("text", -1)


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_a_batch_is_every_text_on_its_own(tiny: Tokenizer, threads: int | None) -> None:
    texts = [f"text {i} " * (i % 13) + "中<img>" for i in range(50)]
    wanted = [tiny.encode(text, allowed_special=["<img>"]) for text in texts]
    assert tiny.encode_batch(texts, allowed_special=["<img>"], threads=threads) == wanted
    assert tiny.encode_batch([], threads=threads) == []


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
