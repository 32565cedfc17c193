"""Calibration samples: built-in ones, or a user's own pictures and questions.

Best are a few dozen lines of what the model will be used for, answers included, as JSONL:

    {"image": "shelf.jpg", "prompt": "Where is it?", "answer": "<ref>the mug</ref><box>(12,30),(480,610)</box>"}

"image" is relative to the file's folder, or a list, or absent; "answer" may be absent. A folder's pictures are each
asked a few general questions; those that cannot be read are left out.

What calibration costs follows the tokens of its samples, most of which are pictures'. So a picture is asked its
questions in one conversation, and of more samples than 16,384 tokens have room for, evenly spread ones are taken.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.parts import Text
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.prompt import Turn
from qwenvl_edge_export.verification.cases import Case, CaseBuilder

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_RANDOM_PICTURES = 16
MOST_TOKENS = 16_384
"""Of all samples: one and a half for each input of the published model's widest layer."""

Maker: TypeAlias = Callable[[], Case | None]
"""Makes a sample, or None of a picture that cannot be read."""


def read_samples(
    source: Path | None,
    builder: CaseBuilder,
    note: Callable[[str], object] = lambda text: None,
    most_tokens: int = MOST_TOKENS,
) -> list[Case]:
    """The samples of a folder of pictures or a JSONL file; None takes the built-in ones.

    Args:
        source: where they are.
        builder: of the model that is calibrated.
        note: told how many pictures of a folder cannot be read, and how many samples are taken, if not all of them.
        most_tokens: where further samples are left out.

    Raises:
        QwenVLError: there is nothing at `source`, no readable picture in the folder, or a line is malformed; names the
            file and the line.
    """
    if source is None:
        return _chosen([*_asked(_builtin_pictures(), builder), *_words(builder)], most_tokens, note)
    if source.is_dir():
        return _of_folder(source, builder, note, most_tokens)
    if not source.is_file():
        raise QwenVLError(f'there are no calibration samples at "{source}"; give a folder of pictures or a JSONL file.')
    lines = _read(source).removeprefix(codecs.BOM_UTF8).splitlines()
    makers = [_line(source, i, line, builder) for i, line in enumerate(lines, 1) if line.strip()]
    if not makers:
        raise QwenVLError(f'"{source}" holds no calibration sample.')
    return _chosen(makers, most_tokens, note)


def _chosen(makers: Sequence[Maker], most_tokens: int, note: Callable[[str], object]) -> list[Case]:
    """Evenly spread ones of the samples, as many as it takes to have so many tokens, in order."""
    found: dict[int, Case] = {}
    tokens = tried = 0
    for i in sorted(range(len(makers)), key=lambda i: f"{i:032b}"[::-1]):  # every 2nd, 4th, .. one before those between
        tried += 1
        if (case := makers[i]()) is not None:
            found[i] = case
            tokens += len(case.prompt.ids) + len(case.answer)
        if tokens >= most_tokens:
            break
    if tried < len(makers):
        note(f"{len(found)} of {len(makers)} samples")
    return [found[i] for i in sorted(found)]


def _asked(pictures: Iterable[Callable[[], Picture | None]], builder: CaseBuilder) -> list[Maker]:
    """For each picture a conversation of all general questions, with another one last each time."""

    def make(number: int, load: Callable[[], Picture | None]) -> Case | None:
        if (picture := load()) is None:
            return None
        said = builder.prompts.about_pictures
        *before, (question, answer) = (said[(number + i) % len(said)] for i in range(1, len(said) + 1))
        if number % 2:  # as most pictures are asked: once
            before = []
        parts = [(picture, Text(asked)) if i == 0 else (Text(asked),) for i, (asked, _) in enumerate(before)]
        history = tuple(Turn(part, reply) for part, (_, reply) in zip(parts, before, strict=True))
        last = (Text(question),) if history else (picture, Text(question))
        return builder.case(f"picture {number}", last, history, answer)

    return [partial(make, number, load) for number, load in enumerate(pictures)]


def _words(builder: CaseBuilder) -> list[Maker]:
    said = enumerate(builder.prompts.words)
    return [partial(builder.case, f"words {i}", (Text(prompt),), (), answer) for i, (prompt, answer) in said]


def _builtin_pictures() -> Iterator[Callable[[], Picture]]:
    """Random rectangles: not the pictures of verification, which would then show too small a loss."""
    random = np.random.default_rng(11)
    for _ in range(_RANDOM_PICTURES):
        canvas = np.full((240, 320, 3), random.integers(0, 256, 3), np.uint8)
        for _ in range(8):
            x, y, w, h = random.integers(0, (260, 180, 120, 120))
            canvas[y : y + h + 8, x : x + w + 8] = random.integers(0, 256, 3)
        yield partial(load_picture, canvas)


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise QwenVLError(f'cannot read "{source}": {error.strerror}.') from None


def _of_folder(folder: Path, builder: CaseBuilder, note: Callable[[str], object], most_tokens: int) -> list[Case]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    unreadable: list[Path] = []

    def load(path: Path) -> Picture | None:
        try:
            return load_picture(path)
        except ImageError:
            unreadable.append(path)
            return None

    cases = _chosen(_asked([partial(load, path) for path in paths], builder), most_tokens, note)
    if not cases:
        raise QwenVLError(f'the calibration folder "{folder}" holds no readable picture ({", ".join(_SUFFIXES)}).')
    if unreadable:
        note(f"{len(unreadable)} of {len(paths)} pictures unreadable")
    return cases


def _line(source: Path, number: int, line: bytes, builder: CaseBuilder) -> Maker:
    """Check a line; its pictures are read when the sample is made."""
    where = f'"{source}", line {number}'
    try:
        content: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise QwenVLError(f"{where}: it is not UTF-8 ({error.reason} at byte {error.start}).") from None
    except ValueError as error:
        raise QwenVLError(f"{where}: it is not JSON ({error}).") from None
    known = {"image", "prompt", "answer"}
    if not isinstance(content, dict) or not set(content) <= known or not isinstance(content.get("prompt"), str):
        raise QwenVLError(f'{where}: it must be an object with "prompt", and "image" and "answer" if there are any.')
    answer, images = content.get("answer", ""), content.get("image", [])
    if not isinstance(answer, str):
        raise QwenVLError(f'{where}: "answer" must be a text; leave it out where there is none.')
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise QwenVLError(
            f'{where}: "image" must be a file\'s name or a list of such; leave it out where there is none.'
        )

    def make() -> Case:
        try:
            pictures = [load_picture(source.parent / name) for name in images]
        except ImageError as error:
            raise ImageError(f"{where}: {error}") from None
        return builder.case(f"line {number}", (*pictures, Text(content["prompt"])), (), answer)

    return make
