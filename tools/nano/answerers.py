"""Answerers of evaluation questions: the runtime on a bundle, and PyTorch on a checkpoint's weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from qwenvl_edge import QwenVLEngine
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
from tools.nano.loop import normalise
from tools.nano.pools import pixels
from tools.nano.sequences import Composer
from tools.nano.tasks import Dialogue

MAX_NEW_TOKENS = 120
REGION = re.compile(r"<ref>(.*?)</ref><box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")


def items(question: str) -> list[dict[str, Any]]:
    """A question with markup as message items."""
    found: list[dict[str, Any]] = []
    at = 0
    for match in REGION.finditer(question):
        if match.start() > at:
            found.append({"text": question[at : match.start()]})
        found.append({"ref": match[1], "box": tuple(int(g) for g in match.groups()[1:])})
        at = match.end()
    return [*found, {"text": question[at:]}] if at < len(question) else found


class EngineAnswerer:
    """Asks an engine as a user would; earlier turns are given with their right answers."""

    def __init__(self, engine: QwenVLEngine):
        self.engine = engine

    def __call__(self, dialogue: Dialogue, pictures: Sequence[Image.Image]) -> str:
        """The last turn's answer, with markup."""
        messages = [items(turn.question) for turn in dialogue.turns]
        messages[0] = [*({"image": picture} for picture in pictures), *messages[0]]
        history = [(message, turn.answer) for message, turn in zip(messages[:-1], dialogue.turns, strict=False)]
        reply = self.engine.chat(messages[-1], history=history, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        return reply.raw_text


class TorchAnswerer:
    """Greedy answers of the PyTorch model; prompts come from the training code, not from the runtime."""

    def __init__(self, model: QwenVLNetwork, composer: Composer):
        self.model, self.composer = model.eval(), composer

    @torch.inference_mode()
    def __call__(self, dialogue: Dialogue, pictures: Sequence[Image.Image]) -> str:
        """The last turn's answer, with markup."""
        sequence = self.composer.chat([dialogue], len(pictures))
        answer = len(self.composer.codec.encode(dialogue.turns[-1].answer)) + 1
        ids = torch.tensor([sequence.ids[:-answer]])
        features = self.model.encode_images(normalise(np.stack([pixels(picture) for picture in pictures])))
        end = self.composer.end
        tokens = self.model.generate(self.model.embed(ids, features), MAX_NEW_TOKENS, frozenset({end}))
        return self.composer.codec.decode([t for t in tokens if t != end])
