"""Text to token ids and back: byte-pair encoding over a .tiktoken vocabulary, computed by the native core.

Ids equal those of tiktoken with the same ranks and Qwen's published split pattern, on NFC-normalised text. The
tokenizer knows no model: special tokens are what the caller passes, and text becomes one only where allowed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from qwenvl_edge import _core
from qwenvl_edge.errors import BundleError, ContextError, PromptError
from qwenvl_edge.families.base import Family

AllowedSpecial = Collection[str] | Literal["all"]
Ids = Sequence[int] | npt.NDArray[np.integer]

_KEPT_BYTES = 1 << 20  # of text; ids take about twice as many again
_NFC_SHRINKS = 3  # the most by which normal form C shortens a text: a Hangul syllable of three parts


def open_tokenizer(family: Family, file: Path, vocab_size: int) -> Tokenizer:
    """Open the tokenizer file of a family, for a model with `vocab_size` rows.

    Raises:
        BundleError: the file is missing or damaged, or does not belong to the family's special tokens or to the model.
    """
    tokenizer = Tokenizer(family.read_vocabulary(file), family.special_tokens, name=str(file))
    family.check_vocabulary(tokenizer.rank_count, vocab_size)
    return tokenizer


class Tokenizer:
    """Immutable, and safe to share between threads.

    Args:
        vocabulary: path of a .tiktoken file (lines "base64 rank"), or its contents.
        special_tokens: text and id of every special token; ids lie above the ranks.
        name: what to call contents in messages.

    Raises:
        BundleError: the vocabulary is missing or damaged, or special tokens clash.
    """

    def __init__(
        self, vocabulary: str | os.PathLike[str] | bytes, special_tokens: Mapping[str, int], *, name: str = ""
    ) -> None:
        try:
            contents = vocabulary if isinstance(vocabulary, bytes) else Path(vocabulary).read_bytes()
            self._core = _core.Tokenizer(contents, dict(special_tokens))
        except OSError as error:
            raise BundleError(f"Cannot read the vocabulary: {error}; give the path of qwen.tiktoken.") from error
        except ValueError as error:
            place = name if isinstance(vocabulary, bytes) else os.fspath(vocabulary)
            raise BundleError(f"{place}: {error}." if place else f"{error}.") from None
        self._special_tokens = dict(special_tokens)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of every special token."""
        return dict(self._special_tokens)

    @property
    def rank_count(self) -> int:
        """Number of ordinary tokens; their ids are 0 .. rank_count - 1."""
        return self._core.rank_count

    def encode(self, text: str, *, allowed_special: AllowedSpecial = ()) -> list[int]:
        """Return the token ids of `text`.

        Args:
            text: any text; it is NFC-normalised first.
            allowed_special: special tokens whose text becomes their id, or "all". Others stay ordinary text.

        Raises:
            PromptError: lone surrogates in the text, or a name in `allowed_special` that is no special token.
        """
        try:
            return self._core.encode(_normal(text), _allowed(allowed_special))
        except ValueError as error:
            raise PromptError(f"Cannot encode: {error}.") from None

    def count(self, text: str, *, allowed_special: AllowedSpecial = ()) -> int:
        """len(encode(text)) without building the list. Raises what `encode` raises."""
        try:
            return self._core.count(_normal(text), _allowed(allowed_special))
        except ValueError as error:
            raise PromptError(f"Cannot count: {error}.") from None

    def decode_bytes(self, ids: Ids) -> bytes:
        """Return the bytes of the ids (list, tuple or integer array [N]); special tokens give their text.

        Raises:
            PromptError: an id that belongs to no token.
        """
        try:
            return self._core.decode_bytes(ids)
        except ValueError as error:
            raise PromptError(f"Cannot decode: {error}.") from None

    def decode(self, ids: Ids, *, errors: str = "replace") -> str:
        """Return the text of the ids; `errors` as in bytes.decode, for ids that end or begin inside a character.

        Raises:
            PromptError: an id that belongs to no token.
            UnicodeDecodeError: the bytes are not UTF-8 and `errors` is "strict".
        """
        try:
            return self._core.decode(ids, errors)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise PromptError(f"Cannot decode: {error}.") from None

    def incremental(self, *, stop: Sequence[str] = ()) -> IncrementalDecoder:
        """Start decoding token by token, up to the first of the `stop` strings."""
        return IncrementalDecoder(self._core, stop)


class EncodedTexts:
    """Encodes the words of prompts. What is said in a conversation comes again with every question.

    The lists that it returns must not be changed. Safe to share between threads.
    """

    def __init__(self, tokenizer: Tokenizer, *, kept_bytes: int = _KEPT_BYTES) -> None:
        self._tokenizer = tokenizer
        self._limit = kept_bytes
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], list[int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """Return the ids of a text, as Tokenizer.encode."""
        key = text, tuple(allowed_special)
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        ids = self._tokenizer.encode(text, allowed_special=allowed_special)
        if _size(text) * 4 <= self._limit:  # a text that would push out most of the others is not kept
            with self._lock:
                self._bytes += _size(text) if key not in self._kept else 0
                self._kept[key] = ids
                while self._bytes > self._limit:
                    (oldest, _), _ = self._kept.popitem(last=False)
                    self._bytes -= _size(oldest)
        return ids

    def check_length(self, text: str, most: int) -> None:
        """Check that a text could have `most` tokens; costs nothing for texts of usual length.

        Raises:
            ContextError: it has more, whatever its words are.
        """
        if len(text) > most and len(text) > most * _NFC_SHRINKS * self._longest_token:
            raise ContextError(
                f"a text of the prompt has {len(text):,} characters, more than the context of {most:,} tokens holds; "
                "shorten it.",
                limit=most,
            )

    @functools.cached_property
    def _longest_token(self) -> int:
        """Bytes of the longest token."""
        return max(len(self._tokenizer.decode_bytes([id_])) for id_ in range(self._tokenizer.rank_count))


class IncrementalDecoder:
    """Tokens to text as they come: whole characters only, and nothing from the first stop string on.

    All pieces joined equal `Tokenizer.decode` of all ids, cut where the earliest stop string begins. Text that may be
    the beginning of a stop string is held back until that is decided. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        PromptError: an empty stop string.
    """

    def __init__(self, tokenizer: _core.Tokenizer, stop: Sequence[str] = ()) -> None:
        try:
            self._core = _core.IncrementalDecoder(tokenizer, list(stop))
        except ValueError as error:
            raise PromptError(f"Cannot decode: {error}.") from None

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is now certain, often empty.

        Raises:
            PromptError: the id belongs to no token.
        """
        try:
            return self._core.push(token_id)
        except ValueError as error:
            raise PromptError(f"Cannot decode: {error}.") from None

    def finish(self) -> str:
        """All tokens have come; return the text still held back."""
        return self._core.finish()

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._core.stopped


def _normal(text: str) -> str:
    """Return the text in normal form C; the core's quick check spares most texts Python's slower normalize."""
    return text if _core.surely_normal(text) else normalize("NFC", text)


def _allowed(allowed_special: AllowedSpecial) -> list[str] | None:
    if allowed_special == "all":
        return None
    if isinstance(allowed_special, str):
        raise PromptError(f'allowed_special is {allowed_special!r}; give a collection of special tokens or "all".')
    return list(allowed_special)


def _size(text: str) -> int:
    """Return bytes of a text in memory, its ids included, as a bound."""
    return 12 * len(text) + 200
