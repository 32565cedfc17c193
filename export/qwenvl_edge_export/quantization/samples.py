"""Calibration samples: built-in ones, or a user's own pictures and questions.

Best are a few dozen lines of what the model will be used for, answers included, as JSONL:

    {"image": "shelf.jpg", "prompt": "Where is it?", "answer": "<ref>the mug</ref><box>(12,30),(480,610)</box>"}

"image" is relative to the file's folder, or a list, or absent; "answer" may be absent. A folder's pictures are each
asked a few general questions; those that cannot be read are left out.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl_edge.errors import ImageError, QwenVLError
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.prompt import Text
from qwenvl_edge_export.verification.cases import Case, CaseBuilder

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_RANDOM_PICTURES = 8


def read_samples(
    source: Path | None, builder: CaseBuilder, note: Callable[[str], object] = lambda text: None
) -> list[Case]:
    """The samples of a folder of pictures or a JSONL file; None takes the built-in ones.

    `note` is told how many pictures of a folder are left out, if any.

    Raises:
        QwenVLError: there is nothing at `source`, no readable picture in the folder, or a line is malformed; names the
            file and the line.
    """
    if source is None:
        said = enumerate(builder.prompts.words)
        words = [builder.case(f"words {i}", (Text(prompt),), (), answer) for i, (prompt, answer) in said]
        return [*_ask_all(_builtin_pictures(), builder), *words]
    if source.is_dir():
        return _ask_all(_pictures_of(source, note), builder)
    if not source.is_file():
        raise QwenVLError(f'there are no calibration samples at "{source}"; give a folder of pictures or a JSONL file.')
    lines = _read(source).removeprefix(codecs.BOM_UTF8).splitlines()
    cases = [_line(source, i, line, builder) for i, line in enumerate(lines, 1) if line.strip()]
    if not cases:
        raise QwenVLError(f'"{source}" holds no calibration sample.')
    return cases


def _ask_all(pictures: Sequence[Picture], builder: CaseBuilder) -> list[Case]:
    return [
        builder.case(f"picture {i}", (picture, Text(question)), (), answer)
        for i, picture in enumerate(pictures)
        for question, answer in builder.prompts.about_pictures
    ]


def _builtin_pictures() -> list[Picture]:
    """Random rectangles: not the pictures of verification, which would then show less than the loss."""
    random = np.random.default_rng(11)
    pictures = []
    for _ in range(_RANDOM_PICTURES):
        canvas = np.full((240, 320, 3), random.integers(0, 256, 3), np.uint8)
        for _ in range(8):
            x, y, w, h = random.integers(0, (260, 180, 120, 120))
            canvas[y : y + h + 8, x : x + w + 8] = random.integers(0, 256, 3)
        pictures.append(load_picture(canvas))
    return pictures


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise QwenVLError(f'cannot read "{source}": {error.strerror}.') from None


def _pictures_of(folder: Path, note: Callable[[str], object]) -> list[Picture]:
    pictures = []
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    for path in paths:
        try:
            pictures.append(load_picture(path))
        except ImageError:
            continue
    if not pictures:
        raise QwenVLError(f'the calibration folder "{folder}" holds no readable picture ({", ".join(_SUFFIXES)}).')
    if len(pictures) < len(paths):
        note(f"{len(paths) - len(pictures)} of {len(paths)} pictures unreadable")
    return pictures


def _line(source: Path, number: int, line: bytes, builder: CaseBuilder) -> Case:
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
    try:
        pictures = [load_picture(source.parent / name) for name in images]
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from None
    return builder.case(f"line {number}", (*pictures, Text(content["prompt"])), (), answer)
