"""Tokens that a fine-tune added to a tokenizer, as transformers writes them beside its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.json_file import read_optional
from qwenvl_edge_export.checkpoint.listing import shortened

FILES = ("tokenizer_config.json", "added_tokens.json")
_MOST_ID = 1 << 24


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary; special: transformers leaves it out where special tokens are skipped."""

    text: str
    id: int
    special: bool


def read_added_tokens(folder: Path) -> tuple[AddedToken, ...]:
    """All of them, by id: tokenizer_config.json's added_tokens_decoder, then added_tokens.json.

    Raises:
        CheckpointError: a file is malformed, or one text or id is there twice.
    """
    found: dict[int, AddedToken] = {}
    for token in (*_decoder(folder / FILES[0]), *_added(folder / FILES[1])):
        known = found.setdefault(token.id, token)
        if known.text != token.text:
            raise CheckpointError(
                f'the checkpoint "{folder}" gives the id {token.id} to two tokens, "{shortened(known.text)}" and '
                f'"{shortened(token.text)}".'
            )
    tokens = sorted(found.values(), key=lambda token: token.id)
    if len({token.text for token in tokens}) < len(tokens):
        twice = next(token.text for token in tokens if sum(each.text == token.text for each in tokens) > 1)
        raise CheckpointError(f'the checkpoint "{folder}" gives two ids to the token "{shortened(twice)}".')
    return tuple(tokens)


def _decoder(path: Path) -> Iterator[AddedToken]:
    entries = read_optional(path).get("added_tokens_decoder") or {}
    if not isinstance(entries, Mapping):
        raise CheckpointError(f'"{path}": added_tokens_decoder is not an object.')
    for id_, entry in entries.items():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        number = int(id_) if id_.isdecimal() and len(id_) < 9 else None
        yield _token(path, content, number, bool(isinstance(entry, Mapping) and entry.get("special", True)))


def _added(path: Path) -> Iterator[AddedToken]:
    for text, id_ in read_optional(path).items():
        yield _token(path, text, id_, True)


def _token(path: Path, text: Any, id_: Any, special: bool) -> AddedToken:
    if not isinstance(text, str) or not text or type(id_) is not int or not 0 <= id_ < _MOST_ID:
        raise CheckpointError(f'"{path}" holds an added token that is not a text with an id: {shortened(str(text))}.')
    return AddedToken(text, id_, special)
