"""Answerers of the evaluation's questions: the engine on a bundle, and PyTorch on a training's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.families import open_family
from qwenvl_edge.families.base import Family
from tools.nano.scenes import Box
from tools.nano.talk.cases import Case
from tools.nano.talk.composing import Composer, Encoded
from tools.nano.talk.forms import Form, JsonForm, TagForm
from tools.nano.talk.packing import Packed
from tools.nano.talk.settings import open_folder
from tools.nano.talk.talker import Talker

MAX_NEW_TOKENS = 192


@dataclass(frozen=True)
class Answer:
    """An answer read: its words, and the places in it in fractions of the picture, with their labels."""

    text: str
    boxes: tuple[Box, ...]
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]


def read(family: Family, raw: str) -> Answer:
    """Read an answer with the runtime's own reader; a quad gives the box around it."""
    reader = family.reader()
    text = reader.feed(raw) + reader.finish()
    boxes, points = [], []
    for shape in reader.shapes:
        xs, ys = [p[0] / 1000 for p in shape.points], [p[1] / 1000 for p in shape.points]
        if len(xs) == 1:
            points.append((xs[0], ys[0]))
        else:
            boxes.append((min(xs), min(ys), max(xs), max(ys)))
    return Answer(text.strip(), tuple(boxes), tuple(points), tuple(reader.labels))


def form_of(family: Family) -> Form:
    """The notation of a family."""
    return TagForm() if family.name == "qwen_vl" else JsonForm()


def with_engine(bundle: Bundle, threads: int | None = None) -> Callable[[Case], Answer]:
    """Ask an engine as a user would."""
    engine, family = QwenVLEngine(bundle, threads=threads), open_family(bundle.manifest)
    form = form_of(family)

    def answer(case: Case) -> Answer:
        pictures: list[Mapping[str, Any]] = [{"image": picture} for picture in case.pictures()]
        history = []
        for turn in case.talk.turns[:-1]:
            history.append(([*pictures, {"text": turn.question}], form.write(turn.answer).text))
            pictures = []
        message = [*pictures, {"text": case.turn.question}]
        reply = engine.chat(message, history=history, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        return read(family, reply.raw_text)

    return answer


def with_torch(model: Talker, composer: Composer) -> Callable[[Case], Answer]:
    """Greedy answers of the training's network; each token is computed over the whole sequence, without a cache."""
    model.eval()

    @torch.inference_mode()
    def answer(case: Case) -> Answer:
        layouts = [composer.family.layout(scene.canvas) for scene in case.scenes]
        done = composer.compose(case.talk, layouts)
        begin = last_answer(done)
        features = model.encode([np.asarray(picture) for picture in case.pictures()])
        ids = done.ids[:begin]
        places = torch.tensor([t for s in done.spans for t in range(s.start, s.start + s.length)])
        for _ in range(MAX_NEW_TOKENS):
            positions = torch.from_numpy(composer.positions(len(ids), done.spans))
            states, _, _ = model.decode(torch.tensor(ids), positions, Packed.single(len(ids)), places, features)
            token = int(model.lm_head(states[-1]).argmax())
            if token == composer.end:
                break
            ids.append(token)
        readable = [id_ for id_ in ids[begin:] if id_ < composer.family.decodable]
        return read(composer.family, composer.tokenizer.decode(readable))

    return answer


def last_answer(done: Encoded) -> int:
    """The token with which the last answer of a conversation begins."""
    learnt = np.flatnonzero(np.array(done.weights) > 0)
    return int(learnt[np.flatnonzero(np.diff(learnt) > 1)[-1] + 1]) if (np.diff(learnt) > 1).any() else int(learnt[0])


def open_answerer(source: Path, threads: int | None = None) -> Callable[[Case], Answer]:
    """Open the answerer of a bundle, or of a training's folder: with its weights so far, or the checkpoint's.

    threads: that it computes with; None: as many as the engine or PyTorch takes.

    Raises:
        SystemExit: the folder is neither.
    """
    if (source / "bundle.json").exists():
        return with_engine(Bundle.open(source), threads)
    if not (source / "model" / "config.json").exists():
        raise SystemExit(f"{source} is no bundle and no folder of a training; export one, or give the right folder.")
    if threads:
        torch.set_num_threads(threads)
    return with_torch(*trained(source))


def trained(run: Path) -> tuple[Talker, Composer]:
    """Open the model of a training's folder: with its weights so far, or the checkpoint's."""
    model, composer = open_folder(run / "model")
    if (run / "talk.pt").exists():
        saved: Mapping[str, torch.Tensor] = torch.load(run / "talk.pt", weights_only=True)["module"]
        model.load_state_dict({k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")})
    return model, composer
