"""Prompts with answers, as the model is used: a builder for them, and the built-in ones that bundles are verified on.

A built-in answer need not be right: PyTorch and the bundle are given it token by token (teacher forcing), so that they
are compared on the same input throughout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.manifest import GenerationDefaults
from qwenvl_edge.families import open_family
from qwenvl_edge.families.base import Family
from qwenvl_edge.families.pieces import PictureLayout
from qwenvl_edge.inputs.clips import Visual
from qwenvl_edge.inputs.parts import Part, Text
from qwenvl_edge.inputs.pictures import Picture, load_picture
from qwenvl_edge.inputs.prompt import Prompt, PromptBuilder, Turn, parse_message
from qwenvl_edge.inputs.tokenizer import Tokenizer, open_tokenizer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import DefaultPrompts, PictureInputs
from qwenvl_edge_export.families.detect import default_prompts

GridBox: TypeAlias = tuple[int, int, int, int]
"""x1, y1, x2, y2 as the model writes them, 0..999 of each side."""

Size: TypeAlias = tuple[int, int]
"""Width and height."""
Pixels: TypeAlias = npt.NDArray[np.uint8]

_SQUARE: Size = (160, 160)
_SHAPES: tuple[Size, ...] = ((308, 196), (392, 56), (56, 224), (56, 56))
"""A large picture of several windows, the last of which are cut; a wide, a tall and a small one."""
_SEED = 7


@dataclass(frozen=True)
class Case:
    """A prompt with its pictures as the vision graph takes them, in order, and the ids of an answer, int64 [M]."""

    name: str
    prompt: Prompt
    pictures: tuple[PictureInputs, ...]
    answer: npt.NDArray[np.int64]

    def digest(self) -> str:
        """SHA-256 over the shapes and bytes of all that the model is given; the name does not count."""
        total = hashlib.sha256()
        for part in (self.prompt.ids, self.answer):
            total.update(f"{part.dtype.str} {part.shape}\n".encode())
            total.update(np.ascontiguousarray(part).data)
        for picture in self.pictures:
            total.update(picture.digest().encode())
        return total.hexdigest()


class CaseBuilder:
    """Makes cases in the format that a model was trained on (ChatML or raw)."""

    def __init__(self, family: Family, generation: GenerationDefaults, tokenizer: Tokenizer, prompts: DefaultPrompts):
        self._generation = generation
        self.prompts = prompts
        self._family = family
        self._tokenizer = tokenizer
        self._prompts = PromptBuilder(self._family, self._tokenizer)

    @property
    def any_shape(self) -> bool:
        """True if pictures keep their shape, False if all become one size."""
        return len({self._family.layout(size) for size in _SHAPES}) > 1

    def case(self, name: str, parts: tuple[Part, ...], history: tuple[Turn, ...], answer: str) -> Case:
        """One case; the answer may hold grounding markup and is followed by the end of the text."""
        family = self._family
        if family.can_chat(self._generation.chat_format):
            window = self._generation.max_window_size
            prompt = self._prompts.chat(parts, history=history, system=family.default_system, window=window)
        else:
            prompt = self._prompts.raw([part for turn in history for part in turn.user] + list(parts))
        return Case(name, prompt, self._pictures(prompt), self.answer_ids(answer))

    def answer_ids(self, answer: str) -> npt.NDArray[np.int64]:
        """Ids [M] of an answer, which may hold grounding markup, and of the end of the text."""
        ids = self._tokenizer.encode(answer, allowed_special=self._family.markup_tags)
        return np.array([*ids, self._family.end_of_text], np.int64)

    def box_case(self, name: str, picture: Picture, phrase: str) -> Case:
        """The question where `phrase` is, in the form that boxes were trained in; its answer is left empty."""
        items: list[Mapping[str, object]] = [{"image": picture}, *self._family.grounding_items(phrase)]
        prompt = self._prompts.raw(parse_message(items, (), lambda source, name: load_picture(source, name=name)))
        return Case(name, prompt, self._pictures(prompt), np.empty(0, np.int64))

    def box(self, answer: Sequence[int]) -> GridBox | None:
        """The box that an answer to a `box_case` begins with; None if it is none."""
        reader = self._family.reader()
        lead = self._family.grounding_items("")[-1]["text"]
        reader.feed(lead + self._tokenizer.decode([id_ for id_ in answer if id_ < self._family.decodable]))
        points = reader.shapes[0].points if reader.shapes else ()
        return (*points[0], *points[1]) if len(points) == 2 else None

    def _pictures(self, prompt: Prompt) -> tuple[PictureInputs, ...]:
        layouts = {span.picture: span.layout for span in prompt.spans}
        return tuple(
            picture_inputs(self._family, picture, layouts[number]) for number, picture in enumerate(prompt.pictures)
        )


def picture_inputs(family: Family, picture: Visual, layout: PictureLayout) -> PictureInputs:
    """A picture or clip as the vision graph of `family` takes it."""
    return PictureInputs(picture.vision_inputs(family), layout)


def case_builder(bundle: Bundle) -> CaseBuilder:
    """A builder for the model of a bundle."""
    manifest = bundle.manifest
    family = open_family(manifest)
    tokenizer = open_tokenizer(family, bundle.file(manifest.tokenizer), manifest.model.vocab_size)
    return CaseBuilder(family, manifest.generation, tokenizer, default_prompts(manifest.family.name))


def source_case_builder(checkpoint: Checkpoint) -> CaseBuilder:
    """A builder for the model of a checkpoint."""
    source = checkpoint.family
    family = source.runtime_family()
    tokenizer = open_tokenizer(family, checkpoint.tokenizer, source.model_info().vocab_size)
    generation = source.generation_defaults(checkpoint.generation)
    return CaseBuilder(family, generation, tokenizer, source.default_prompts)


def builtin_box_case(builder: CaseBuilder) -> Case:
    """A green disc to be found."""
    large = _SHAPES[0] if builder.any_shape else _SQUARE
    return builder.box_case("box", load_picture(_disc(large)), "the green ball")


def builtin_cases(builder: CaseBuilder) -> list[Case]:
    """Words alone; pictures of two turns, a disc first. Where pictures keep their shape, none has another's."""
    found = builder.prompts.found
    _, wide, tall, small = _SHAPES
    first, then = (wide, [_bars(tall), _noise(small)]) if builder.any_shape else (_SQUARE, [_bars(_SQUARE)])
    turn = Turn((load_picture(_disc(first)), Text("What is in the picture?")), "A green disc on a dark ground.")
    return [
        builder.case(
            "text", (Text("Hello, who are you? 你好！"),), (), "I answer questions about pictures. 我看图回答问题。"
        ),
        builder.case(
            "pictures, history",
            (*map(load_picture, then), Text("What changed?")),
            (turn,),
            f"The disc is gone: {found}.",
        ),
    ]


def _bars(size: Size) -> Pixels:
    """Coloured bars, the same everywhere."""
    y, x = np.mgrid[: size[1], : size[0]]
    return np.stack([(x * 3) % 256, (y * 5) % 256, (x // 20 * 30) % 256], axis=-1).astype(np.uint8)


def _noise(size: Size) -> Pixels:
    """Noise, the same everywhere."""
    return np.random.default_rng(_SEED).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def _disc(size: Size) -> Pixels:
    """A green disc above the middle of a dark ground."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    canvas = np.full((height, width, 3), (20, 30, 60), np.uint8)
    canvas[(x - width * 11 // 16) ** 2 + (y - height * 3 // 8) ** 2 < (min(size) // 4) ** 2] = (40, 160, 60)
    return canvas
