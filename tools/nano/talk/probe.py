"""Linear read-outs of unseen pictures: `python -m tools.nano.talk.probe FOLDER --work WORK`.

FOLDER is one that tools.nano.talk.publish wrote: it has the weights and the read-outs. WORK has the sprites. The share
of right kinds, colours and letters, and the mean error of a box's sides as fractions of the picture's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tools.nano.talk.batches import grid_of
from tools.nano.talk.dense import DenseHeads, Targets, targets
from tools.nano.talk.drawing import render
from tools.nano.talk.icons import prepare
from tools.nano.talk.pictures import EVALUATION_SEED
from tools.nano.talk.scenes import CANVASES, Stock, sample_scene
from tools.nano.talk.settings import HEADS, open_folder

SCENES = 25  # of each canvas
_SEED = EVALUATION_SEED + 5_000_000


@torch.inference_mode()
def probe(folder: Path, sprites: Path, scenes: int = SCENES) -> dict[str, float]:
    """Figures over `scenes` unseen scenes of each canvas."""
    model, composer = open_folder(folder)
    heads, stock = DenseHeads(model.width), Stock(sprites)
    heads.load_state_dict(load_file(folder / "training" / HEADS))
    found = []
    for number, canvas in enumerate(CANVASES):
        shown = [sample_scene(stock, _SEED + number * scenes + i, canvas=canvas) for i in range(scenes)]
        grid = grid_of(composer.family.layout(canvas))
        features = model.seen([np.asarray(render(scene, stock)) for scene in shown])
        found.append(heads(features, Targets.joined([targets(scene, grid) for scene in shown]))[1])
    names = {name for each in found for name in each}
    return {name: round(float(np.mean([each[name] for each in found if name in each])), 4) for name in sorted(names)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    print(probe(arguments.folder, prepare(arguments.work)))
