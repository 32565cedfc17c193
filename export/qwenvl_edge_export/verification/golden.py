"""A bundle compared with tensors that another implementation recorded: pixels, features, logits, greedy steps.

A folder of such tensors holds golden_vision.npz, golden_text.npz, golden_meta.json and the pictures. Its layout is one
of two: that of Qwen-VL, whose arrays of pictures begin with "vis.files.", or that of the later families, which name
each array after its picture. Every stage is given the recorded input of that stage, so that one that is wrong does
not show in the next.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families import open_family
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import Piece, Rows, Shown, Span
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.prompt import Prompt
from qwenvl_edge_export.families.base import ImageFeatures, PictureInputs
from qwenvl_edge_export.verification.calls import PROMPT_ROWS
from qwenvl_edge_export.verification.cases import picture_inputs
from qwenvl_edge_export.verification.comparison import logits_limits
from qwenvl_edge_export.verification.limits import (
    LIMITS,
    FloatArray,
    Limits,
    Report,
    Row,
    agreement,
    logits_row,
    values_row,
)
from qwenvl_edge_export.verification.sides import Side
from qwenvl_edge_export.verification.stages import Progress, Stages
from qwenvl_edge_export.verification.streamed_reference import Asked

_OLD_PICTURES = ("a", "b", "c", "rgba", "gray")  # the order of vis.files.*
_IMG = re.compile(r"<img>(.*?)</img>")


@dataclass(frozen=True)
class Tolerances:
    """Largest absolute differences: of pixels at any precision, of features and logits in float32."""

    pixels: float
    features: float
    logits: float


@dataclass(frozen=True)
class GoldenPicture:
    """A picture's recorded pixel_values and features [Q, H], and deepstack [L, Q, H] where there is some.

    transparent: recorded without regard to its transparency, behind which the runtime shows white.
    """

    name: str
    file: Path
    pixels: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    deepstack: npt.NDArray[np.float32] | None
    transparent: bool = False


@dataclass(frozen=True)
class GoldenPrompt:
    """A recorded prompt: ids [T], the names of its pictures, logits [K, V] of its last positions, its greedy answer.

    steps: the logits [M, V] that chose the answer's tokens.
    """

    name: str
    ids: npt.NDArray[np.int64]
    pictures: tuple[str, ...]
    logits: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.int64]
    steps: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """Everything that a folder recorded; skipped: what of it cannot be compared, and why."""

    pictures: tuple[GoldenPicture, ...]
    prompts: tuple[GoldenPrompt, ...]
    tolerances: Tolerances
    skipped: tuple[str, ...]


def read_golden(folder: Path) -> Golden:
    """Read a folder of recorded tensors in either layout.

    Raises:
        QwenVLError: a file or an array is missing or damaged.
    """
    try:
        with np.load(folder / "golden_vision.npz") as file:
            vision = dict(file)
        with np.load(folder / "golden_text.npz") as file:
            text = dict(file)
        meta = json.loads((folder / "golden_meta.json").read_text(encoding="utf-8"))
        read = _read_old if any(name.startswith("vis.") for name in vision) else _read_families
        return read(folder, vision, text, meta)
    except (OSError, ValueError, EOFError) as error:
        raise QwenVLError(f'cannot read the recorded tensors in "{folder}": {error}.') from None
    except (KeyError, TypeError, AttributeError) as error:
        raise QwenVLError(f'the recorded tensors in "{folder}" are incomplete: {error} is missing.') from None


def _read_old(folder: Path, vision: Mapping[str, Any], text: Mapping[str, Any], meta: Mapping[str, Any]) -> Golden:
    """Qwen-VL's layout; pictures lie in "images", here or beside the folder."""
    images = next((each for each in (folder / "images", folder.parent / "images") if each.is_dir()), folder / "images")
    pixels, features = (vision[f"vis.files.{part}"] for part in ("pixel_values", "features"))
    pictures = tuple(
        GoldenPicture(name, images / f"{name}.png", pixels[i], features[i], None, transparent=name == "rgba")
        for i, name in enumerate(_OLD_PICTURES)
    )
    prompts = tuple(
        GoldenPrompt(
            name,
            text[f"{name}.input_ids"],
            tuple(Path(path).stem for path in _IMG.findall(said["raw_text"])),
            text[f"{name}.logits_last4"] if f"{name}.logits_last4" in text else text[f"{name}.logits"],
            text[f"{name}.greedy"],
            text[f"{name}.step_logits"],
        )
        for name, said in meta.items()
        if "raw_text" in said
    )
    skipped = ("the pixels of picture rgba: the published code ignores transparency, white is shown behind it here",)
    return Golden(pictures, prompts, Tolerances(pixels=1e-6, features=3e-5, logits=1e-4), skipped)


def _read_families(folder: Path, vision: Mapping[str, Any], text: Mapping[str, Any], meta: Mapping[str, Any]) -> Golden:
    """The later families' layout; pictures lie in the folder's "images"."""
    names = sorted(name.removesuffix(".pixel_values") for name in vision if name.endswith(".pixel_values"))
    pictures = tuple(
        GoldenPicture(
            name,
            folder / "images" / f"{name}.png",
            vision[f"{name}.pixel_values"],
            vision[f"{name}.features"],
            vision.get(f"{name}.deepstack"),
        )
        for name in names
    )
    prompts, skipped = [], []
    for name, said in meta["prompts"].items():
        if said["video"]:
            skipped.append(f"the prompt {name}: it holds a clip")
            continue
        arrays = (text[f"{name}.{part}"] for part in ("logits", "greedy", "step_logits"))
        prompts.append(GoldenPrompt(name, text[f"{name}.input_ids"], tuple(said["images"]), *arrays))
    return Golden(pictures, tuple(prompts), Tolerances(pixels=1e-6, features=1e-5, logits=2e-4), tuple(skipped))


class GoldenComparison:
    """Compares the sides of a bundle with recorded tensors."""

    def __init__(self, bundle: Bundle, golden: Golden, sides: Sequence[Side], progress: Progress):
        self._bundle = bundle
        self._golden = golden
        self._sides = sides
        self._family = open_family(bundle.manifest)
        self._loaded: dict[str, Picture] = {each.name: load_picture(each.file) for each in golden.pictures}
        self._stages = Stages(progress, 2 * len(sides))

    def run(self) -> Report:
        """All rows: pixels, features of each vision graph, then logits and greedy steps of each decoder.

        Raises:
            QwenVLError: a tensor does not fit the bundle's model.
            BackendError: a graph cannot be run here, or yields NaN or infinity.
        """
        own = {each.name: self._inputs(each) for each in self._golden.pictures}
        limit = self._golden.tolerances.pixels
        rows = [
            values_row("pixels", "preprocessing", each.name, _like(own[each.name], each), each.pixels, limit)
            for each in self._golden.pictures
            if not each.transparent
        ]
        given = [_with_pixels(own[each.name], each) for each in self._golden.pictures]
        features: dict[str, dict[str, ImageFeatures]] = {}
        for side in self._sides:
            if side.vision not in features:
                done = self._stages.begin(f"comparing: {side.vision}", 1, side.vision_steps)
                features[side.vision] = dict(zip(own, side.encode(given, done), strict=True))
                rows += self._feature_rows(side.vision, features[side.vision])
        recorded = {each.name: _recorded(each) for each in self._golden.pictures}
        for side in self._sides:
            rows += self._logits_rows(side, recorded)
            side.close()
        return Report(tuple(rows), self._golden.skipped)

    def _inputs(self, picture: GoldenPicture) -> PictureInputs:
        loaded = self._loaded[picture.name]
        return picture_inputs(self._family, loaded, self._family.layout(loaded.size))

    def _feature_rows(self, graph: str, found: Mapping[str, ImageFeatures]) -> Iterator[Row]:
        precision = self._bundle.manifest.precision.vision
        for each in self._golden.pictures:
            for stage, wanted, values in (
                ("image features", each.features, found[each.name].rows),
                ("deepstack features", each.deepstack, found[each.name].deepstack),
            ):
                if wanted is not None and values is not None:
                    limit = self._limit(LIMITS[precision], precision, wanted, self._golden.tolerances.features)
                    cosine = LIMITS[precision].min_cosine
                    yield values_row(stage, graph, each.name, values.numpy(), wanted, limit, min_cosine=cosine)

    def _logits_rows(self, side: Side, features: Mapping[str, ImageFeatures]) -> Iterator[Row]:
        asked = [self._asked(prompt, features) for prompt in self._golden.prompts]
        done = self._stages.begin(f"comparing: decoder {side.name}", 1, side.steps)
        precision = self._bundle.manifest.precision
        limits = logits_limits(precision, side.name)
        exact = self._golden.tolerances.logits if limits == LIMITS["fp32"] else None
        for prompt, (logits,) in zip(self._golden.prompts, side.logits(asked, done), strict=True):
            answer, count = prompt.greedy, min(PROMPT_ROWS, len(prompt.ids), len(prompt.logits))
            steps = logits[-len(answer) - 1 : -1]
            found = np.concatenate([logits[: -len(answer)][-count:], steps])
            wanted = np.concatenate([prompt.logits[-count:], prompt.steps])
            greedy = agreement(answer.tolist(), steps.argmax(-1), answer)
            yield logits_row(
                side.name, prompt.name, found, wanted, limits, greedy, stage="logits, greedy steps", exact=exact
            )

    def _limit(self, limits: Limits, precision: str, wanted: FloatArray, exact: float) -> float:
        relative = limits.max_relative * float(np.abs(wanted).max())
        return min(relative, exact) if precision == "fp32" else relative

    def _asked(self, prompt: GoldenPrompt, features: Mapping[str, ImageFeatures]) -> Asked:
        pictures = [self._loaded[name] for name in prompt.pictures]
        spans = tuple(picture_spans(self._family, prompt.ids, pictures))
        positions = self._family.positions(len(prompt.ids), spans)
        ids = np.where(prompt.ids < self._bundle.manifest.model.vocab_size, prompt.ids, 0)
        asked = Prompt(ids, tuple(pictures), spans, 0, positions)
        return Asked(asked, [features[name] for name in prompt.pictures], [prompt.greedy])


def picture_spans(family: Family, ids: npt.NDArray[np.int64], pictures: Sequence[Picture]) -> Iterator[Span]:
    """The places of pictures in recorded ids, in order.

    Raises:
        QwenVLError: there is no room of the right size for one.
    """
    start, listed = 0, ids.tolist()
    for number, picture in enumerate(pictures):
        layout = family.layout(picture.size)
        before, after = _around(family.picture(Shown(0, 1, 0, layout)))
        first = len(before)
        places = (
            place
            for place in range(start, len(listed))
            if listed[place : place + first] == before
            and listed[place + first + layout.tokens :][: len(after)] == after
        )
        place = next(places, None)
        if place is None:
            raise QwenVLError(
                f"picture {number + 1} of a recorded prompt should take {layout.tokens} tokens, but no such place is "
                "among its ids; were the tensors recorded for this model?"
            )
        yield Span(place + first, layout.tokens, number, layout)
        start = place + first + layout.tokens


def _around(placed: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """The control tokens right before a picture's rows, and right after them."""
    at = next(i for i, piece in enumerate(placed) if isinstance(piece, Rows))
    before = itertools.takewhile(lambda piece: isinstance(piece, int), reversed(placed[:at]))
    after = itertools.takewhile(lambda piece: isinstance(piece, int), placed[at + 1 :])
    return [piece for piece in before if isinstance(piece, int)][::-1], [
        piece for piece in after if isinstance(piece, int)
    ]


def _like(own: PictureInputs, picture: GoldenPicture) -> FloatArray:
    """A picture's own pixel_values in the shape of the recorded ones."""
    pixels: FloatArray = own.arrays[PIXEL_VALUES]
    if pixels.size != picture.pixels.size:
        raise QwenVLError(
            f"the recorded pixels of picture {picture.name} have shape {list(picture.pixels.shape)}, the bundle's "
            f"{list(pixels.shape)}; were the tensors recorded for this model?"
        )
    return pixels.reshape(picture.pixels.shape)


def _with_pixels(own: PictureInputs, picture: GoldenPicture) -> PictureInputs:
    """The inputs of a picture with the recorded pixel_values."""
    pixels = picture.pixels.reshape(own.arrays[PIXEL_VALUES].shape)
    return dataclasses.replace(own, arrays={**own.arrays, PIXEL_VALUES: pixels})


def _recorded(picture: GoldenPicture) -> ImageFeatures:
    deepstack = None if picture.deepstack is None else torch.from_numpy(picture.deepstack)
    return ImageFeatures(torch.from_numpy(picture.features), deepstack)
