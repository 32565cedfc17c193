"""Prompts with answers, as the model is used: the built-in ones that bundles are verified on, and how others are made.

What a built-in answer says does not matter: PyTorch and the bundle are given it token by token (teacher forcing), so
that they are compared on the same input throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwenvl_edge.bundle import Bundle, GenerationDefaults, ModelInfo
from qwenvl_edge.conversation import Part, Text, Turn
from qwenvl_edge.families import create_family
from qwenvl_edge.image import Picture, load_picture, pixel_values
from qwenvl_edge.prompt import Prompt, PromptBuilder
from qwenvl_edge.tokenizer import Tokenizer

_SIDE = 160
_SEED = 7


@dataclass(frozen=True)
class Case:
    """A prompt with its pictures' pixel_values [N, 3, S, S] and the ids of an answer, int64 [M]."""

    name: str
    prompt: Prompt
    pixels: npt.NDArray[np.float32]
    answer: npt.NDArray[np.int64]


class CaseBuilder:
    """Makes cases in the format that a model was trained on (ChatML or raw)."""

    def __init__(self, family: str, model: ModelInfo, generation: GenerationDefaults, tokenizer: Path):
        self._model = model
        self._generation = generation
        self._family = create_family(family, image_start_id=model.image_start_id, image_tokens=model.image_tokens)
        self._tokenizer = Tokenizer(tokenizer, self._family.special_tokens)
        self._prompts = PromptBuilder(self._family, self._tokenizer)

    def case(self, name: str, parts: tuple[Part, ...], history: tuple[Turn, ...], answer: str) -> Case:
        """One case; the answer may hold grounding markup and is followed by the end of the text."""
        family, size = self._family, self._model.image_size
        if family.can_chat(self._generation.chat_format):
            window = self._generation.max_window_size
            prompt = self._prompts.chat(parts, history=history, system=family.default_system, window=window)
        else:
            prompt = self._prompts.raw([part for turn in history for part in turn.user] + list(parts))
        preprocessing = family.preprocessing(size)
        pixels = np.empty((len(prompt.pictures), 3, size, size), np.float32)
        for i, picture in enumerate(prompt.pictures):
            pixels[i] = pixel_values(picture, preprocessing)
        ids = self._tokenizer.encode(answer, allowed_special=family.markup.tags)
        return Case(name, prompt, pixels, np.array([*ids, family.end_of_text], np.int64))


def builtin_cases(bundle: Bundle) -> list[Case]:
    """Words alone, one picture, two pictures behind a first exchange."""
    manifest = bundle.manifest
    builder = CaseBuilder(manifest.family, manifest.model, manifest.generation, bundle.file(manifest.tokenizer))
    disc, bars, noise = _pictures()
    first = Turn((disc, Text("What is in the picture?")), "A red disc on a dark ground.")
    box = "<ref>the red disc</ref><box>(120,240),(480,610)</box>"
    return [
        builder.case(
            "text", (Text("Hello, who are you? 你好！"),), (), "I answer questions about pictures. 我看图回答问题。"
        ),
        builder.case("one picture", (disc, Text("Where is the red disc?")), (), box),
        builder.case(
            "two pictures, history", (bars, noise, Text("What changed?")), (first,), f"The disc is gone: {box}."
        ),
    ]


def _pictures() -> tuple[Picture, Picture, Picture]:
    """A red disc, coloured bars and noise, the same everywhere."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    disc = np.full((_SIDE, _SIDE, 3), (20, 30, 60), np.uint8)
    disc[(x - 60) ** 2 + (y - 90) ** 2 < 40**2] = (220, 30, 30)
    bars = np.stack([(x * 3) % 256, (y * 5) % 256, (x // 20 * 30) % 256], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(_SEED).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    return load_picture(disc), load_picture(bars), load_picture(noise)
