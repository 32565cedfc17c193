"""The tokenizer's files: vocabulary, merges, added tokens, chat template.

The runtime computes byte-pair encoding from ranks: token number 256 + k is what merge number k makes. Every published
vocabulary is so, and `check_merges` refuses one that is not. Files that transformers 5 saved have everything in
tokenizer.json alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.json_file import read_object

VOCABULARY = "vocab.json"
_MERGES, _TOKENIZER, _CONFIG = "merges.txt", "tokenizer.json", "tokenizer_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json", _CONFIG)
SIDE_FILES = (_MERGES, _TOKENIZER, _CONFIG, *_TEMPLATES[:2])
_BYTES = 256


@dataclass(frozen=True)
class AddedToken:
    """A token beside the byte-pair ranks; special: it does not show when an answer is decoded."""

    text: str
    id: int
    special: bool


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of the checkpoint in `folder`."""

    folder: Path

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """The tokens of vocab.json, in GPT-2's byte alphabet, and their ids.

        Raises:
            CheckpointError: there are none, or ids are not 0, 1, 2, ...
        """
        if (self.folder / VOCABULARY).is_file():
            where, found = VOCABULARY, read_object(self.folder / VOCABULARY)
        else:
            where, found = _TOKENIZER, self._model.get("vocab") or {}
        if not isinstance(found, Mapping) or not found:
            raise CheckpointError(f'the checkpoint "{self.folder}" lacks {VOCABULARY}; copy it from the published one.')
        added = {token.text for token in self.added}
        ranks = {text: id_ for text, id_ in found.items() if text not in added}
        if sorted(ranks.values(), key=_as_int) != list(range(len(ranks))):
            raise CheckpointError(f'{where} in "{self.folder}" does not number its tokens 0, 1, 2, ...')
        return ranks

    @cached_property
    def added(self) -> Sequence[AddedToken]:
        """Every added token, in the order of ids.

        Raises:
            CheckpointError: no file lists them, or one is malformed.
        """
        found = self._added_by_tokenizer() or self._added_by_config()
        if not found:
            raise CheckpointError(
                f'the checkpoint "{self.folder}" lists no special tokens: {_TOKENIZER} or {_CONFIG} is missing; copy '
                "it from the published one."
            )
        return sorted(found, key=lambda token: token.id)

    def check_merges(self) -> None:
        """Check that merge number k makes token number 256 + k.

        Raises:
            CheckpointError: it does not, or there are no merges.
        """
        by_id = {id_: text for text, id_ in self.ranks.items()}
        merges = self._merges()
        for k, (first, second) in enumerate(merges):
            if by_id.get(_BYTES + k) != first + second:
                raise CheckpointError(
                    f'the tokenizer in "{self.folder}" is not by ranks: merge number {k} makes {first + second!r}, but '
                    f"token {_BYTES + k} is {by_id.get(_BYTES + k)!r}; this vocabulary is not supported."
                )
        if len(merges) + _BYTES != len(by_id):
            raise CheckpointError(
                f'the tokenizer in "{self.folder}" has {len(by_id):,} tokens and {len(merges):,} merges, which must be '
                f"{_BYTES} fewer; copy the files from one checkpoint."
            )

    @property
    def file(self) -> str:
        """The file that bundles take over: vocab.json, or tokenizer.json where there is no other."""
        return VOCABULARY if (self.folder / VOCABULARY).is_file() else _TOKENIZER

    @cached_property
    def template(self) -> str:
        """The chat template, empty without one. It is searched for marks of a family's variant, never run."""
        for name in _TEMPLATES:
            path = self.folder / name
            if path.is_file():
                text = path.read_text(encoding="utf-8") if path.suffix == ".jinja" else _template_of(read_object(path))
                if text:
                    return text
        return ""

    @cached_property
    def _tokenizer(self) -> Mapping[str, Any]:
        path = self.folder / _TOKENIZER
        return read_object(path) if path.is_file() else {}

    @property
    def _model(self) -> Mapping[str, Any]:
        model = self._tokenizer.get("model")
        return model if isinstance(model, Mapping) else {}

    def _merges(self) -> Sequence[tuple[str, str]]:
        path = self.folder / _MERGES
        if path.is_file():
            where, lines = _MERGES, path.read_text(encoding="utf-8").split("\n")
            begin = 1 if lines[0].startswith("#version") else 0
            given: Sequence[Any] = [line for line in lines[begin:] if line]
        else:
            where, given = _TOKENIZER, self._model.get("merges") or ()
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in given]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise CheckpointError(f'{where} in "{self.folder}" holds no merges of two tokens; copy the published one.')
        return [(str(first), str(second)) for first, second in pairs]

    def _added_by_tokenizer(self) -> list[AddedToken]:
        entries = self._tokenizer.get("added_tokens") or []
        return [self._token(entry.get("id"), entry) for entry in entries]

    def _added_by_config(self) -> list[AddedToken]:
        path = self.folder / _CONFIG
        entries = read_object(path).get("added_tokens_decoder") if path.is_file() else None
        return [self._token(id_, entry) for id_, entry in (entries or {}).items()]

    def _token(self, id_: Any, entry: Mapping[str, Any]) -> AddedToken:
        try:
            return AddedToken(str(entry["content"]), int(id_), bool(entry.get("special", True)))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f'an added token in "{self.folder}" is malformed: {entry!r}.') from None


def _template_of(raw: Mapping[str, Any]) -> str:
    found = raw.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else ""


def _as_int(value: Any) -> int:
    return value if type(value) is int else -1
