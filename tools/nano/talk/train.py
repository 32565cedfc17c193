"""Training in two stages: `python -m tools.nano.talk.train WORK [--family F] [--stage S] [--until HH:MM]`.

Stage one teaches the picture side what every token shows, stage two the whole model to talk. Both write
RUN/STAGE.pt and RUN/STAGE.jsonl, go on from where they were stopped, and stop cleanly at Ctrl-C, at a termination or at
a time of day (UTC). Stage two leaves the checkpoint RUN/model. RUN is the family's folder in WORK.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from qwenvl_edge.families.pieces import PictureLayout
from tools.nano.loop import Loop, stop_at
from tools.nano.model import optimizers
from tools.nano.talk.batches import Batch, collate, grid_of
from tools.nano.talk.chatting import SINGLE, converse
from tools.nano.talk.composing import Composer, Encoded
from tools.nano.talk.dense import DenseHeads, Targets, targets
from tools.nano.talk.fusing import can_compile
from tools.nano.talk.guiding import Teacher
from tools.nano.talk.icons import prepare
from tools.nano.talk.noticing import Noticer, notice
from tools.nano.talk.pictures import Pictures, Shown
from tools.nano.talk.scenes import CANVASES, Change, Scene, Stock
from tools.nano.talk.settings import FAMILIES, HEADS, create, open_folder, write_weights
from tools.nano.talk.talker import Talker

STEPS = {"vision": 16_000, "talk": 16_000}
PICTURES = 16  # of a step of stage one
ROWS, TALKS = 8, 6  # of a step of stage two: rows, and conversations of a row
LOOKED_AT = 8  # pictures of a step of stage two that nobody talks about, for the per-token targets
GUIDE_WEIGHT, DENSE_WEIGHT = 0.3, 0.3
NAMES = ("words", "digits", "text")


@dataclass
class Row:
    """Pictures and the conversations about them."""

    shown: Sequence[tuple[Scene, np.ndarray]]
    talks: list[Encoded]
    change: Change | None = None


class Sampler:
    """Draws rows; the same step draws the same ones as long as no chunks of pictures are added."""

    def __init__(self, pictures: Pictures, composer: Composer):
        self.pictures, self.composer = pictures, composer

    def layout(self, scene: Scene) -> PictureLayout:
        """The room of a scene's picture."""
        return self.composer.family.layout(scene.canvas)

    def grid(self, scene: Scene) -> tuple[int, int]:
        """Rows and columns of a scene's tokens."""
        return grid_of(self.layout(scene))

    def row(self, rng: random.Random, canvas: int, progress: float) -> Row:
        """One row. Scenes and conversations grow over the first half of training."""
        grown = min(progress * 2, 1.0)
        roll = rng.random()
        shown: list[Shown]
        if roll < 0.03:
            shown = []
        elif roll < 0.03 + 0.22 * grown:
            shown = [self.pictures.draw(rng, "pairs", canvas)]
        elif roll < 0.03 + 0.3 * grown:
            shown = [self.pictures.draw(rng, "few", rng.choice((canvas, rng.randrange(len(CANVASES))))) for _ in "ab"]
            shown += [self.pictures.draw(rng, "few", canvas)] if rng.random() < 0.3 else []
        else:
            shown = [self.pictures.draw(rng, "many" if rng.random() < 0.2 + 0.4 * grown else "few", canvas)]
        scenes = [scene for each in shown for scene in each.scenes]
        layouts = [self.layout(scene) for scene in scenes]
        change = shown[0].change if len(shown) == 1 else None
        first = bool(scenes) and rng.random() < 0.12
        talks = []
        for _ in range(1 if first else 4 if len(scenes) > 1 else TALKS):
            longest = None if rng.random() < grown else 1
            talk = converse(rng, scenes, change, length=longest, question_first=first, tasks=tuple(SINGLE))
            if talk:
                talks.append(self.composer.compose(talk, layouts))
        pictures = [picture for each in shown for picture in each.pictures]
        return Row(list(zip(scenes, pictures, strict=True)), talks, change)


def answer_loss(
    model: Talker, batch: Batch, features: Tensor, teachers: Sequence[Teacher] = ()
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Loss of the answers, loss of the guides and of other teachers, and figures."""
    states, guided, seen = model.decode(
        batch.ids, batch.positions, batch.packed, batch.pictures, features, [*batch.guides, *teachers]
    )
    learnt = batch.weights.nonzero()[:, 0]  # never the first of a row
    logits = model.lm_head(states.index_select(0, learnt - 1)).float()
    ids, weights, classes = (t[learnt] for t in (batch.ids, batch.weights, batch.classes))
    loss = (F.cross_entropy(logits, ids, reduction="none") * weights).sum() / weights.sum()
    right = (logits.argmax(-1) == ids).float()
    figures = {name: float(right[classes == i].mean()) for i, name in enumerate(NAMES) if (classes == i).any()}
    return loss, guided, figures | seen


def draw_canvas(stage: str, step: int) -> tuple[random.Random, int]:
    """The random numbers of a step, and the canvas of all its pictures."""
    rng = random.Random(f"{stage}-{step}")
    return rng, rng.randrange(len(CANVASES))


def train_vision(work: Path, model: Talker, sampler: Sampler, steps: int) -> None:
    """Stage one."""
    heads = DenseHeads(model.width)
    module = nn.ModuleDict({"tower": model.tower, "heads": heads})
    opts = optimizers([model.tower, heads], 0.0015, 0.0007)
    loop = Loop("vision", work, module, opts, steps)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng, canvas = draw_canvas("vision", step)
        pairs = []
        sorts = rng.choices(("few", "many", "pairs", "signs"), (0.2, 0.42, 0.08, 0.3), k=PICTURES)
        for sort in sorts:
            shown = sampler.pictures.draw(rng, sort, canvas)
            pairs.append(rng.choice(list(zip(shown.scenes, shown.pictures, strict=True))))
        features = model.seen([picture for _, picture in pairs])
        wanted = Targets.joined([targets(scene, sampler.grid(scene)) for scene, _ in pairs])
        loss, figures = heads(features, wanted)
        return loss, figures

    loop.run(loss_of, precision=model.precision)


def train_talk(work: Path, model: Talker, sampler: Sampler, steps: int) -> None:
    """Stage two; the per-token targets go on beside the answers, so that the picture side keeps what it knows."""
    heads, noticer = DenseHeads(model.width), Noticer(model.width)
    going_on = (work / HEADS).exists()  # with a model that talks: its first half has no easy scenes
    if (work / "vision.pt").exists() and not (work / "talk.pt").exists():
        saved = torch.load(work / "vision.pt", weights_only=True)["module"]
        nn.ModuleDict({"tower": model.tower, "heads": heads}).load_state_dict(saved)
    elif going_on:
        heads.load_state_dict(load_file(work / HEADS))
    module = nn.ModuleDict({"model": model, "heads": heads, "noticer": noticer})
    opts = optimizers([model.speaker, model.tower, heads, noticer], 0.001, 0.0007)
    loop = Loop("talk", work, module, opts, steps, decay=0.4)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng, canvas = draw_canvas("talk", step)
        rows = [sampler.row(rng, canvas, 1.0 if going_on else step / steps) for _ in range(ROWS)]
        rows = [row for row in rows if row.talks]
        sorts = rng.choices(("few", "many", "signs"), (0.1, 0.5, 0.4), k=LOOKED_AT)
        others = [sampler.pictures.draw(rng, sort, canvas) for sort in sorts]
        shown = [pair for row in rows for pair in row.shown] + [(s.scenes[0], s.pictures[0]) for s in others]
        features = model.encode([picture for _, picture in shown])
        batch = collate([row.talks for row in rows])
        grids = [sampler.grid(scene) for row in rows for scene, _ in row.shown]
        told = [([scene for scene, _ in row.shown], row.change) for row in rows]
        teachers = notice(noticer, told, grids, batch.pictures)
        answers, guided, figures = answer_loss(model, batch, features[:, : len(batch.pictures)], teachers)
        wanted = Targets.joined([targets(scene, sampler.grid(scene)) for scene, _ in shown])
        dense, read = heads(features[0], wanted)
        loss = answers + GUIDE_WEIGHT * guided + DENSE_WEIGHT * dense
        return loss, {"answers": float(answers.detach()), "tokens": float(batch.ids.numel()), **figures, **read}

    loop.run(loss_of, precision=model.precision)


def main() -> None:
    """Train what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0])
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="what a new run begins with (settings.create)")
    parser.add_argument("--stage", choices=("vision", "talk", "both"), default="both")
    parser.add_argument("--steps", type=int, help="of each stage; the learning rate falls to zero at their end")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--until", metavar="HH:MM", help="stop at this time of day, UTC")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    run: Path = options.work / options.family
    stop_at(options.until)
    stock = Stock(prepare(options.work))
    create(run / "model", stock, options.family, start=options.start)
    model, composer = open_folder(run / "model")
    if can_compile():
        model.fuse()
    pictures = Pictures(options.work, stock)
    pictures.refresh()
    sampler = Sampler(pictures, composer)
    if options.stage in ("vision", "both"):
        train_vision(run, model, sampler, options.steps or STEPS["vision"])
    if options.stage in ("talk", "both"):
        train_talk(run, model, sampler, options.steps or STEPS["talk"])
        write_weights(run / "model", model.published())


if __name__ == "__main__":
    main()
