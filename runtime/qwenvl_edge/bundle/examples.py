"""Pictures and questions to try a model with: examples/examples.json of a bundle, and the pictures beside it.

A checkpoint has them as qwenvl-examples.json, its pictures beside that file; most checkpoints have none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.records import Document, read_object, read_record
from qwenvl_edge.errors import BundleError, QwenVLError
from qwenvl_edge.machine.urls import shown

FOLDER = "examples"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(png|jpg|jpeg|webp)")
_MOST, _MOST_CHARACTERS, _MOST_BYTES = 20, 1000, 1 << 20


@dataclass(frozen=True)
class Example:
    """Questions about pictures, which are named as files beside examples.json."""

    pictures: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Examples(Document):
    """Pictures and questions to try a model with.

    note: what to know before asking it. asks_afresh: questions after the first are best asked in a new conversation.
    pictures_only: it has nothing to say without a picture.
    """

    FILE_NAME: ClassVar[str] = "examples.json"

    examples: tuple[Example, ...] = ()
    note: str = ""
    asks_afresh: bool = False
    pictures_only: bool = False

    @classmethod
    def read(cls, path: Path, error: type[QwenVLError]) -> Examples:
        """Read a file of examples.

        Raises:
            error: it cannot be read, or its content is not valid.
        """
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MOST_BYTES else ""
        except (OSError, UnicodeDecodeError) as problem:
            raise error(f'cannot read "{path}": {getattr(problem, "strerror", None) or problem}.') from None
        read = read_record(cls, read_object(text, f'"{path}"', error), f'"{path}"', error)
        read._check(path, error)
        return read

    def _check(self, path: Path, error: type[QwenVLError]) -> None:
        texts = (self.note, *(question for each in self.examples for question in each.questions))
        if any(len(text) > _MOST_CHARACTERS for text in texts):
            raise error(f'"{path}": a note or question has more than {_MOST_CHARACTERS} characters.')
        lengths = [
            len(self.examples),
            *(len(part) for each in self.examples for part in (each.pictures, each.questions)),
        ]
        if max(lengths) > _MOST:
            raise error(f'"{path}": there are more than {_MOST} examples, or pictures or questions in one.')
        for name in self.pictures:
            if not _NAME.fullmatch(name):
                raise error(f'"{path}": the picture "{shown(name)}" must be a PNG, JPEG or WebP file beside it.')

    @property
    def pictures(self) -> tuple[str, ...]:
        """The names of all pictures, each once."""
        return tuple(dict.fromkeys(name for each in self.examples for name in each.pictures))


def examples_of(bundle: Bundle) -> Examples:
    """Return the examples of a bundle; empty if it has none.

    Raises:
        BundleError: they are damaged, or a picture is not among the bundle's files.
    """
    listed = f"{FOLDER}/{Examples.FILE_NAME}"
    if listed not in bundle.manifest.files:
        return Examples()
    examples = Examples.read(bundle.file(listed), BundleError)
    for name in examples.pictures:
        bundle.file(f"{FOLDER}/{name}")
    return examples
