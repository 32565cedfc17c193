"""A model that tools/nano/talk trains answers in the engine as it was taught: template, pictures, positions, places."""

import json
import random

import numpy as np
import pytest
import torch

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.talk import narrow, write_sprites
from tools.nano.evaluation import iou
from tools.nano.talk.answering import with_engine, with_torch
from tools.nano.talk.batches import collate
from tools.nano.talk.cases import cases
from tools.nano.talk.chatting import converse
from tools.nano.talk.drawing import render
from tools.nano.talk.scenes import Stock, sample_scene
from tools.nano.talk.settings import FAMILIES, create, new_model, open_folder, write_weights
from tools.nano.talk.train import NAMES, answer_loss


@pytest.fixture(scope="module", params=FAMILIES)
def taught(request, tmp_path_factory):
    """Conversations about two pictures that a narrow model knows by heart, and the engine of its export."""
    folder = tmp_path_factory.mktemp("taught")
    stock = Stock(write_sprites(folder))
    create(folder / "model", stock, request.param, scenes=60, ranks=700)
    _, composer = open_folder(folder / "model")
    config = narrow(json.loads((folder / "model" / "config.json").read_text()))
    (folder / "model" / "config.json").write_text(json.dumps(config))
    scenes = [sample_scene(stock, seed, (2, 3), 1.0, canvas) for seed, canvas in ((3, (256, 192)), (4, (192, 256)))]
    pictures = [render(scene, stock) for scene in scenes]
    rng = random.Random(0)
    talks = [[converse(rng, [s], length=n, tasks=("where", "count", "read", "colour")) for n in (1, 3)] for s in scenes]
    talks.append([converse(rng, [scenes[1]], length=1, question_first=True)])
    shown = [0, 1, 1]
    layouts = [composer.family.layout(scene.canvas) for scene in scenes]
    rows = [[composer.compose(t, [layouts[k]]) for t in each] for each, k in zip(talks, shown, strict=True)]
    batch = collate(rows)
    model = new_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    arrays = [np.asarray(pictures[k]) for k in shown]
    for _ in range(1500):
        features = model.encode(arrays)
        loss, guided, figures = answer_loss(model, batch, features)
        (loss + 0.1 * guided).backward()
        optimizer.step()
        optimizer.zero_grad()
        by_heart = loss.item() < 0.02 and all(figures.get(name, 1.0) == 1.0 for name in NAMES)
        if by_heart:
            break
    assert by_heart
    write_weights(folder / "model", model.published())
    export(folder / "model", folder / "bundle", precision=ExportPrecision.choose("fp32"))
    asked = [(talk, pictures[k]) for each, k in zip(talks, shown, strict=True) for talk in each]
    return asked, composer, QwenVLEngine(folder / "bundle", threads=1), folder


def test_the_engine_answers_as_taught(taught):
    asked, composer, engine, _ = taught
    for talk, picture in asked:
        history = []
        for number, turn in enumerate(talk.turns):
            items = [{"text": turn.question}]
            if number == 0:
                items = [*items, {"image": picture}] if talk.question_first else [{"image": picture}, *items]
            reply = engine.chat(items, history=history, do_sample=False)
            assert reply.raw_text == composer.form.write(turn.answer).text
            for box, wanted in zip(reply.boxes, turn.truth.get("boxes", ()), strict=True):
                width, height = picture.size
                assert iou((box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height), wanted) > 0.9
            history = reply.history


def test_pytorch_and_the_engine_answer_alike(taught):
    """Evaluation may ask either; questions that were never taught get the same words from both."""
    *_, folder = taught
    by_engine, by_torch = with_engine(Bundle.open(folder / "bundle")), with_torch(*open_folder(folder / "model"))
    for part in ("where", "caption", "later turn", "which"):
        for case in cases(part, 2, "en", folder / "sprites.npz"):
            assert by_engine(case) == by_torch(case)
