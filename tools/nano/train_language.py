"""Stage two: the whole model on dialogues. `python -m tools.nano.train_language FOLDER [--steps N]`.

Starts from FOLDER/vision.pt and FOLDER/qwen.tiktoken (or a checkpoint), leaves FOLDER/language.pt. The per-patch
targets of stage one go on beside the answers, so that the picture side keeps what it knows while the decoder learns.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge_export.checkpoint import Checkpoint, load_model
from qwenvl_edge_export.modeling import Block, QwenVL, rotary_tables, rotate
from tools.nano.dense import DenseHeads, targets
from tools.nano.loop import Loop, normalise
from tools.nano.model import new_model, optimizers
from tools.nano.pools import TRAINING, Pool, load_pool
from tools.nano.scenes import Change, Scene
from tools.nano.sequences import Batch, Composer, Sequence, collate
from tools.nano.tasks import several_dialogues, single_dialogues
from tools.nano.vocabulary import Codec

BATCH = 8
STEPS = 6000
DIALOGUES = 7
DENSE_WEIGHT = 0.15
FOCUS_WEIGHT, FOCUS_HEADS, WORD_LAYER, PATCH_LAYER = 0.3, 2, 1, 2
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
        if roll < 0.16 * grown + 0.04:
            scenes, change, pictures = self._scenes(rng, PAIRS)
            return self.composer.chat(several_dialogues(rng, scenes, change, 5), 2), scenes, pictures
        if roll < 0.24 * grown + 0.06:
            drawn = [self._scenes(rng, rng.choice((ONE, FEW))) for _ in range(rng.choice((2, 2, 3)))]
            scenes, pictures = [d[0][0] for d in drawn], [d[2][0] for d in drawn]
            return self.composer.chat(several_dialogues(rng, scenes, None, 5), len(scenes)), scenes, pictures
        which = rng.choices((ONE, FEW, MANY), (0.6 - 0.5 * grown, 0.3, 0.1 + 0.5 * grown))[0]
        scenes, _, pictures = self._scenes(rng, which)
        make = self.composer.raw if rng.random() < 0.1 else self.composer.chat
        tasks = ["ground", "ground_all", "read", "kind", "colour"] if make == self.composer.raw else None
        return make(single_dialogues(rng, scenes[0], DIALOGUES, tasks), 1), scenes, pictures


def attention_scores(block: Block, hidden: Tensor, batch: Batch, rope: tuple[Tensor, Tensor]) -> Tensor:
    """What a layer's first FOCUS_HEADS look at from the batch's focus tokens: scores before softmax [n, heads, T]."""
    cos, sin = rope
    dim = hidden.shape[-1] // block.attn.heads
    inner = FOCUS_HEADS * dim
    w_q, w_k, _ = block.attn.c_attn.weight.chunk(3)
    b_q, b_k, _ = block.attn.c_attn.bias.chunk(3)
    x = block.ln_1(hidden)
    rows, tokens = batch.focus_rows, batch.focus_tokens
    q = F.linear(x[rows, tokens], w_q[:inner], b_q[:inner]).unflatten(-1, (FOCUS_HEADS, dim))
    q = rotate(q, cos[rows, 0, tokens][:, None], sin[rows, 0, tokens][:, None])
    k = rotate(F.linear(x, w_k[:inner], b_k[:inner]).unflatten(-1, (FOCUS_HEADS, dim)).transpose(1, 2), cos, sin)
    by_row = q.split(rows.bincount(minlength=len(k)).tolist())  # rows are in order; gathering k[rows] would cost more
    return torch.cat([torch.einsum("nhd,htd->nht", *pair) for pair in zip(by_row, k, strict=True)]) / dim**0.5


def share_loss(scores: Tensor, wanted: Tensor, among: Tensor) -> Tensor:
    """-log of the attention that `wanted` tokens get among `among`, where any are; all three are [n, heads, T]."""
    asked = wanted.any(-1)
    part = scores.masked_fill(~wanted, -torch.inf)[asked].logsumexp(-1)
    whole = scores.masked_fill(~among, -torch.inf)[asked].logsumexp(-1)
    return (whole - part).sum() / asked.sum().clamp(min=1)


def focus_loss(
    layer: int, block: Block, hidden: Tensor, batch: Batch, spans: Tensor, rope: tuple[Tensor, Tensor]
) -> Tensor:
    """How far a layer's first heads look past what the next token speaks of.

    On WORD_LAYER they are to look at the colour and the kind that were named, on PATCH_LAYER at the patches of what is
    meant. Found without help, which patches belong to "the red mug" is a plateau of many thousand pictures.
    """
    rows, tokens = batch.focus_rows, batch.focus_tokens
    scores = attention_scores(block, hidden, batch, rope)
    if layer == PATCH_LAYER:
        wanted, among = batch.focus_patches[:, None].expand_as(scores), spans[rows]
    else:
        wanted, among = batch.focus_words, batch.mask[rows, 0, tokens] & ~spans[rows]
    return share_loss(scores, wanted, among[:, None].expand_as(scores))


def answer_loss(model: QwenVL, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Weighted cross entropy of the answers' tokens, the focus loss, and the accuracy by class of token."""
    config = model.config
    spans = (batch.ids == config.vision.image_start_id + 2) & (batch.segments == 0)
    hidden = model.transformer.wte(batch.ids).masked_scatter(spans[..., None], features.flatten(0, 1))
    cos, sin = (t[:, None] for t in rotary_tables(batch.positions, config, alpha=1.0))
    mask, scale = batch.mask, torch.ones(1)
    focus, seen = hidden.new_zeros(()), {}
    for i, block in enumerate(model.transformer.h):
        if i in (WORD_LAYER, PATCH_LAYER) and len(batch.focus_rows):
            part = focus_loss(i, block, hidden, batch, spans, (cos, sin))
            seen["words seen" if i == WORD_LAYER else "patches seen"] = float((-part.detach()).exp())
            focus = focus + part
        hidden, _ = block(hidden, (cos, sin), scale, mask, None)
    wanted = batch.weights[:, 1:] > 0
    logits = model.lm_head(model.transformer.ln_f(hidden[:, :-1][wanted]))
    ids, weights, classes = (t[:, 1:][wanted] for t in (batch.ids, batch.weights, batch.classes))
    loss = (F.cross_entropy(logits, ids, reduction="none") * weights).sum() / weights.sum()
    right = (logits.argmax(-1) == ids).float()
    names = ("words", "digits", "text")
    figures = {name: float(right[classes == i].mean()) for i, name in enumerate(names) if (classes == i).any()}
    return loss, focus, figures | seen


def starting_point(folder: Path, codec: Codec, start: Path | None) -> nn.ModuleDict:
    """The model, and the heads of its per-patch targets: after stage one, or from a checkpoint (with fresh heads)."""
    model = new_model(codec.ranks, seed=0)
    module = nn.ModuleDict({"model": model, "heads": DenseHeads(model.config.hidden_size)})
    if start:
        model.load_state_dict(load_model(Checkpoint.open(start)).state_dict())
        return module
    first = torch.load(folder / "vision.pt", weights_only=True)["module"]
    model.transformer.visual.load_state_dict({k[7:]: v for k, v in first.items() if k.startswith("visual.")})
    module["heads"].load_state_dict({k[6:]: v for k, v in first.items() if k.startswith("heads.")})
    return module


def main(folder: Path, steps: int = STEPS, start: Path | None = None) -> None:
    """Train and leave FOLDER/language.pt; `start` is a checkpoint to go on from instead of FOLDER/vision.pt."""
    codec = Codec((start or folder) / "qwen.tiktoken")
    module = starting_point(folder, codec, start)
    model = module["model"]
    decoder = nn.ModuleList([model.transformer.wte, model.transformer.h, model.transformer.ln_f, model.lm_head])
    opts = optimizers([decoder], 0.001, 0.0007)
    seeing = [p for m in (model.transformer.visual, module["heads"]) for p in m.parameters() if p.requires_grad]
    opts.append(torch.optim.AdamW(seeing, lr=1e-4, betas=(0.9, 0.97), weight_decay=0.0, fused=True))
    loop = Loop("language", folder, module, opts, steps)
    sampler = Sampler(folder, Composer(codec, model.config.vision.n_queries))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"language-{step}")
        drawn = [sampler.draw(rng, 1.0 if start else step / steps) for _ in range(BATCH)]
        asked = [p for _, _, pictures in drawn for p in pictures]
        spelt, more = sampler.spelling(rng)
        scenes = [scene for _, several, _ in drawn for scene in several] + spelt
        features = model.encode_images(normalise(np.stack([*asked, *more])))
        batch = collate([s for s, _, _ in drawn], sampler.composer)
        loss, focus, figures = answer_loss(model, batch, features[: len(asked)])
        labels, boxes = (torch.from_numpy(np.stack(t)) for t in zip(*map(targets, scenes), strict=True))
        dense, _ = module["heads"](features, labels, boxes)
        return loss + FOCUS_WEIGHT * focus + DENSE_WEIGHT * dense, {"answers": float(loss.detach()), **figures}

    loop.run(loss_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="go on from a checkpoint's weights")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps, arguments.start)
