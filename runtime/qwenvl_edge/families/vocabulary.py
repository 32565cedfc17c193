"""vocab.json, the byte-level BPE vocabulary of the newer families, as the ranks that the tokenizer reads.

Its keys write bytes in GPT-2's printable alphabet: printable bytes stand for themselves, the others for the characters
from U+0100 on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from qwenvl_edge.errors import BundleError

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def byte_alphabet() -> dict[str, int]:
    """Return the byte of each of the 256 characters of GPT-2's alphabet."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    alphabet = {chr(byte): byte for byte in _PRINTABLE}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


def read_byte_vocabulary(file: Path, added: Mapping[str, int]) -> bytes:
    """Return the ranks of a vocab.json, or of a tokenizer.json, which holds the same, as lines "base64 rank".

    added: text and id of added tokens, which some writers put into the file as well.

    Raises:
        BundleError: the file is missing or no such vocabulary.
    """
    try:
        tokens = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleError(f'cannot read "{file}": {error.strerror}.') from None
    except ValueError as error:
        raise BundleError(f'"{file}" is not JSON ({error}); export the bundle again.') from None
    if isinstance(tokens, dict) and isinstance(tokens.get("model"), dict):  # a tokenizer.json
        tokens = tokens["model"].get("vocab")
    if not isinstance(tokens, dict) or not all(type(rank) is int for rank in tokens.values()):
        raise BundleError(f'"{file}" is not a vocabulary, an object of tokens and their ids.')
    tokens = {text: rank for text, rank in tokens.items() if added.get(text) != rank}
    if sorted(tokens.values()) != list(range(len(tokens))):
        raise BundleError(f'the ids in "{file}" are not 0 to {len(tokens) - 1}, each once.')
    alphabet = byte_alphabet()
    lines = []
    for text, rank in sorted(tokens.items(), key=lambda item: item[1]):
        try:
            token = bytes(alphabet[char] for char in text)
        except KeyError as error:
            raise BundleError(f'"{file}" has the token {text!r}, in which {error} is no byte.') from None
        lines.append(base64.b64encode(token) + b" %d\n" % rank)
    return b"".join(lines)
