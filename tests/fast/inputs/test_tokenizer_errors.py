"""A damaged vocabulary is one clear error, never wrong ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.errors import BundleError
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.vocabularies import TINY, vocabulary_file

SINGLE = [bytes([i]) for i in range(256)]
GOOD = vocabulary_file([*SINGLE, b"ab", b"abc"])
LINES = GOOD.splitlines(keepends=True)


def test_a_good_file_with_any_line_ends() -> None:
    for contents in (GOOD, GOOD.rstrip(b"\n"), GOOD.replace(b"\n", b"\r\n")):
        assert Tokenizer(contents, {}).encode("abcab") == [257, 256]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "the vocabulary is empty"),
        (b"\n", 'line 1 of the vocabulary is not "base64 rank"'),
        (GOOD[:-1] + b"\n\n", 'line 259 of the vocabulary is not "base64 rank"'),
        (GOOD[:-5], "line 258 of the vocabulary (is not|has no rank)"),
        (GOOD[:-2], "line 258 of the vocabulary has rank 25 where 257 should be"),
        (b"".join(LINES[:100]), "no token for the single byte 100"),
        (b"".join([*LINES[:10], *LINES[11:]]), "line 11 of the vocabulary has rank 11 where 10 should be"),
        (b"".join([*LINES[:10], LINES[11], LINES[10], *LINES[12:]]), "line 11 of the vocabulary has rank 11"),
        (b"".join([*LINES, LINES[-1]]), "line 259 of the vocabulary has rank 257 where 258 should be"),
        (GOOD + b"YWI= 258\n", "line 259 of the vocabulary repeats the token of line 257"),
        (GOOD + b"YWI 258\n", "line 259 of the vocabulary has a token that is not base64"),
        (GOOD + b"Y!I= 258\n", "line 259 of the vocabulary has a token that is not base64"),
        (GOOD + b"Y=I= 258\n", "line 259 of the vocabulary has a token that is not base64"),
        (GOOD + b"==== 258\n", "line 259 of the vocabulary has a token that is not base64"),
        (GOOD + b"YWJ= 258\n", "line 259 of the vocabulary has a token that is not base64"),
        (GOOD + b" 258\n", "line 259 of the vocabulary has a token that is not base64"),
        (GOOD + b"YWJh x\n", "line 259 of the vocabulary has no rank"),
        (GOOD + b"YWJh -1\n", "line 259 of the vocabulary has no rank"),
        (GOOD + b"YWJh 99999999999999999999\n", "line 259 of the vocabulary has no rank"),
        (GOOD + b"YWJh\t258\n", 'line 259 of the vocabulary is not "base64 rank"'),
    ],
)
def test_damaged_files(contents: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer(contents, {})


def test_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "qwen.tiktoken"
    with pytest.raises(BundleError, match="Cannot read the vocabulary"):
        Tokenizer(path, {})
    path.write_bytes(b"broken")
    with pytest.raises(BundleError, match=r"qwen\.tiktoken: line 1"):
        Tokenizer(path, {})


@given(st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    contents = bytearray(TINY.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    try:
        tokenizer = Tokenizer(bytes(contents), {})
    except BundleError:
        return
    assert tokenizer.decode(tokenizer.encode("Any text, 任何文字")) == "Any text, 任何文字"


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"": 300}, "has no text"),
        ({"<a>": 257}, "which belongs to the vocabulary of 258 ranks"),
        ({"<a>": 300, "<b>": 300}, "<a> and <b> share id 300"),
        ({"<a>": -1}, "has id -1"),
        ({"<a>": 2**31}, "has id 2147483648"),
    ],
)
def test_clashing_special_tokens(special: dict[str, int], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer(GOOD, special)
