"""Stage two: the whole model on dialogues. `python -m tools.nano.train_language FOLDER [--steps N]`.

Starts from FOLDER/vision.pt and FOLDER/qwen.tiktoken (with --start from a checkpoint's decoder), leaves
FOLDER/language.pt. The per-patch targets of stage one go on beside the answers, so that the picture side keeps what it
knows while the decoder learns.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork, rotary_tables
from tools.nano.batches import Batch, collate
from tools.nano.dense import DenseHeads, differences, targets
from tools.nano.focus import NAMES, SEATS, focus_loss
from tools.nano.loop import Loop, normalise
from tools.nano.model import new_model, optimizers
from tools.nano.pools import TRAINING, Pool, load_pool
from tools.nano.scenes import Change, Scene
from tools.nano.sequences import Composer, Sequence
from tools.nano.several_tasks import several_dialogues
from tools.nano.tasks import single_dialogues
from tools.nano.vocabulary import Codec

BATCH = 8
STEPS = 6000
DIALOGUES = 7
DENSE_WEIGHT = 0.15
VISUAL_RATE = 2e-4
FOCUS_WEIGHT = 0.3
COMPARE_WEIGHT, COMPARED_LAYER = 0.3, 2
SPELLING = 4  # pictures full of signs in every step, for the per-patch targets only
ONE, FEW, MANY, PAIRS, LETTERS = range(5)


class Sampler:
    """Draws sequences with their pictures; the same step always draws the same ones."""

    def __init__(self, folder: Path, composer: Composer):
        self.pools: list[tuple[Pool, np.ndarray]] = [(pool, load_pool(pool, folder)) for pool in TRAINING]
        self.composer = composer

    def _scenes(self, rng: random.Random, which: int) -> tuple[list[Scene], Change | None, list[np.ndarray]]:
        pool, store = self.pools[which]
        index = rng.randrange(pool.count)
        scenes, change = pool.scenes(index)
        return scenes, change, list(store[index])

    def spelling(self, rng: random.Random) -> tuple[list[Scene], list[np.ndarray]]:
        """Pictures that teach letters."""
        drawn = [self._scenes(rng, LETTERS) for _ in range(SPELLING)]
        return [d[0][0] for d in drawn], [d[2][0] for d in drawn]

    def draw(self, rng: random.Random, progress: float) -> tuple[Sequence, list[Scene], list[np.ndarray]]:
        """One sequence. Scenes grow from one object to five over the first half of training."""
        grown = min(progress * 2, 1.0)
        roll = rng.random()
        if roll < 0.2 * grown + 0.04:
            scenes, change, pictures = self._scenes(rng, PAIRS)
            sequence = self.composer.chat(several_dialogues(rng, scenes, change, 5), 2)
            sequence.differences = differences(change) if change else None
            return sequence, scenes, pictures
        if roll < 0.3 * grown + 0.06:
            drawn = [self._scenes(rng, rng.choice((ONE, FEW))) for _ in range(rng.choice((2, 2, 3)))]
            scenes, pictures = [d[0][0] for d in drawn], [d[2][0] for d in drawn]
            return self.composer.chat(several_dialogues(rng, scenes, None, 5), len(scenes)), scenes, pictures
        which = rng.choices((ONE, FEW, MANY), (0.6 - 0.5 * grown, 0.3, 0.1 + 0.5 * grown))[0]
        scenes, _, pictures = self._scenes(rng, which)
        make = self.composer.raw if rng.random() < 0.1 else self.composer.chat
        tasks = ["ground", "ground_all", "read", "kind", "colour"] if make == self.composer.raw else None
        return make(single_dialogues(rng, scenes[0], DIALOGUES, tasks), 1), scenes, pictures


class Losses(NamedTuple):
    """Losses of answers (weighted cross entropy), guided attention and compared pictures, and figures of them."""

    answers: Tensor
    focus: Tensor
    compare: Tensor
    figures: dict[str, float]


def compare_loss(hidden: Tensor, batch: Batch, head: nn.Linear) -> Tensor:
    """A patch's difference from the picture before, read from its hidden state."""
    rows, tokens, kinds = batch.differences
    balance = torch.tensor([0.2, 1.0, 1.0, 1.0])
    return F.cross_entropy(head(hidden[rows, tokens]).float(), kinds, balance)


def answer_loss(model: QwenVLNetwork, batch: Batch, features: Tensor, compare: nn.Linear | None = None) -> Losses:
    """The decoder's losses on a batch with the features [N, Q, H] of its pictures."""
    config = model.config
    spans = (batch.ids == config.vision.image_start_id + 2) & (batch.segments == 0)
    hidden = model.transformer.wte(batch.ids).masked_scatter(spans[..., None], features.flatten(0, 1))
    cos, sin = (t[:, None] for t in rotary_tables(batch.positions, config, alpha=1.0))
    mask, scale = batch.mask, torch.ones(1)
    focus, differing, seen = hidden.new_zeros(()), hidden.new_zeros(()), {}
    for i, block in enumerate(model.transformer.h):
        for guide in batch.guides:
            if SEATS[guide.kind][0] == i:
                part = focus_loss(block, hidden, guide, (cos, sin))
                seen[NAMES[guide.kind]] = float((-part.detach()).exp())
                focus = focus + part
        if i == COMPARED_LAYER and compare and len(batch.differences[0]):
            differing = compare_loss(hidden, batch, compare)
            seen["compared"] = float(differing.detach())
        hidden, _ = block(hidden, (cos, sin), scale, mask, None)
    wanted = batch.weights[:, 1:] > 0
    logits = model.lm_head(model.transformer.ln_f(hidden[:, :-1][wanted])).float()
    ids, weights, classes = (t[:, 1:][wanted] for t in (batch.ids, batch.weights, batch.classes))
    loss = (F.cross_entropy(logits, ids, reduction="none") * weights).sum() / weights.sum()
    right = (logits.argmax(-1) == ids).float()
    names = ("words", "digits", "text")
    figures = {name: float(right[classes == i].mean()) for i, name in enumerate(names) if (classes == i).any()}
    return Losses(loss, focus, differing, figures | seen)


def starting_point(folder: Path, codec: Codec, start: Path | None) -> nn.ModuleDict:
    """The model and the heads of its further targets: fresh or a checkpoint's, with the picture side of stage one."""
    model = new_model(codec.ranks, seed=0)
    if start:
        opened = Checkpoint.open(start)
        model.load_state_dict({name: opened.tensor(name).float() for name in opened.family.tensors})
    heads = DenseHeads(model.config.hidden_size)
    first = torch.load(folder / "vision.pt", weights_only=True)["module"]
    model.transformer.visual.load_state_dict({k[7:]: v for k, v in first.items() if k.startswith("visual.")})
    heads.load_state_dict({k[6:]: v for k, v in first.items() if k.startswith("heads.")})
    return nn.ModuleDict({"model": model, "heads": heads, "compare": nn.Linear(model.config.hidden_size, 4)})


def main(folder: Path, steps: int = STEPS, start: Path | None = None) -> None:
    """Train and leave FOLDER/language.pt; `start` is a checkpoint whose decoder goes on learning."""
    codec = Codec(folder / "qwen.tiktoken")
    module = starting_point(folder, codec, start)
    model = module["model"]
    decoder = nn.ModuleList([model.transformer.wte, model.transformer.h, model.transformer.ln_f, model.lm_head])
    opts = optimizers([decoder], 0.001, 0.0007)
    helpers = (model.transformer.visual, module["heads"], module["compare"])
    seeing = [p for m in helpers for p in m.parameters() if p.requires_grad]
    opts.append(torch.optim.AdamW(seeing, lr=VISUAL_RATE, betas=(0.9, 0.97), weight_decay=0.0, fused=True))
    loop = Loop("language", folder, module, opts, steps, decay=0.6)
    sampler = Sampler(folder, Composer(codec, model.config.vision.n_queries))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"language-{step}")
        drawn = [sampler.draw(rng, 1.0 if start else step / steps) for _ in range(BATCH)]
        asked = [p for _, _, pictures in drawn for p in pictures]
        spelt, more = sampler.spelling(rng)
        scenes = [scene for _, several, _ in drawn for scene in several] + spelt
        features = model.encode_images(normalise(np.stack([*asked, *more]))).float()
        batch = collate([s for s, _, _ in drawn], sampler.composer)
        losses = answer_loss(model, batch, features[: len(asked)], module["compare"])
        labels, boxes = (torch.from_numpy(np.stack(t)) for t in zip(*map(targets, scenes), strict=True))
        dense, _ = module["heads"](features, labels, boxes)
        loss = losses.answers + FOCUS_WEIGHT * losses.focus + COMPARE_WEIGHT * losses.compare + DENSE_WEIGHT * dense
        return loss, {"answers": float(losses.answers.detach()), **losses.figures}

    loop.run(loss_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="go on from a checkpoint's decoder")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps, arguments.start)
