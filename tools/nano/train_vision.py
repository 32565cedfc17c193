"""Stage one: ViT and resampler on per-patch targets. `python -m tools.nano.train_vision FOLDER [--steps N]`.

Leaves FOLDER/vision.pt. Starts from fresh weights, or with --start from those of a checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qwenvl_edge_export.checkpoint.reader import Checkpoint, load_model
from tools.nano.dense import DenseHeads, targets
from tools.nano.loop import Loop, normalise
from tools.nano.model import new_model, optimizers
from tools.nano.pools import TRAINING, load_pool

BATCH = 16
STEPS = 12_000


def main(folder: Path, steps: int = STEPS, start: Path | None = None) -> None:
    """Train and leave FOLDER/vision.pt; `start` is a checkpoint to go on from."""
    visual = new_model(ranks=1000, seed=0).transformer.visual  # the picture side does not depend on the vocabulary
    if start:
        visual.load_state_dict(load_model(Checkpoint.open(start)).transformer.visual.state_dict())
    module = nn.ModuleDict({"visual": visual, "heads": DenseHeads(visual.proj.shape[0])})
    loop = Loop("vision", folder, module, optimizers([visual, module["heads"]], 0.0015, 0.0007), steps)
    pools = [(pool, load_pool(pool, folder)) for pool in TRAINING]
    shares = np.array([0.1, 0.15, 0.3, 0.05, 0.4])

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((1, step))
        pictures, labels, boxes = [], [], []
        for which in rng.choice(len(pools), BATCH, p=shares):
            pool, store = pools[which]
            index = int(rng.integers(pool.count))
            scenes, _ = pool.scenes(index)
            side = int(rng.integers(len(scenes)))
            label, box = targets(scenes[side])
            pictures.append(store[index, side])
            labels.append(label)
            boxes.append(box)
        features = visual(normalise(np.stack(pictures))).float()
        return module["heads"](features, torch.from_numpy(np.stack(labels)), torch.from_numpy(np.stack(boxes)))

    loop.run(loss_of)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="go on from a checkpoint's picture side")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.steps, arguments.start)
