"""Vocabularies and tiktoken encodings that the tokenizer tests share."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from qwenvl_edge import _core
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.paths import ROOT

FULL = ROOT / ".cache" / "qwen.tiktoken"
TINY = ROOT / "tests" / "data" / "tiny" / "qwen.tiktoken"
GOLDEN = ROOT / "tests" / "data" / "tokenizer" / "golden_tokenizer.json"

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def full_vocabulary() -> Path:
    """Path of the 151,643 ranks, which are downloaded by the test set-up and not committed."""
    if not FULL.exists():
        pytest.skip(f"{FULL.relative_to(ROOT)} is missing; the test set-up downloads it")
    return FULL


@cache
def golden() -> dict[str, Any]:
    cases: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return cases


def special_tokens(first: int) -> dict[str, int]:
    """Qwen-VL's special tokens with the first id at `first`."""
    texts = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    texts += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    return {text: first + i for i, text in enumerate(texts)}


def read_ranks(path: Path) -> dict[bytes, int]:
    lines = path.read_bytes().split()
    return {base64.b64decode(token): int(rank) for token, rank in zip(lines[::2], lines[1::2], strict=True)}


@cache
def peers(path: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Our tokenizer and tiktoken's on the same ranks, special tokens and pattern."""
    ranks = read_ranks(path)
    specials = special_tokens(len(ranks))
    encoding = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    return Tokenizer(path, specials), encoding


def both_cores(contents: bytes) -> tuple[_core.Tokenizer, _core.Tokenizer]:
    """The core on a vocabulary file, merging all text as it is defined; and in linear time from the first text on."""
    return _core.Tokenizer(contents, {}, linear_after=2**62), _core.Tokenizer(contents, {}, linear_after=0)


@cache
def cores(path: Path) -> tuple[_core.Tokenizer, _core.Tokenizer]:
    """`both_cores` of a file."""
    return both_cores(path.read_bytes())


def vocabulary_file(tokens: list[bytes]) -> bytes:
    """A .tiktoken file of these tokens in this order."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
