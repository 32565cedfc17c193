"""Figures that linear heads read from the patches of fresh scenes: the bound that the picture side sets to the answers.

`python -m tools.nano.probe FOLDER/vision.pt|FOLDER/language.pt [--count N]` prints one JSON object: mean IoU and share
at IoU 0.5 of the boxes of things, their mean error in pixels of the model's picture, share of signs spelt whole.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from tools.nano.dense import CHARACTERS, LETTERS, TEXT, DenseHeads, covered
from tools.nano.drawing import render
from tools.nano.evaluation import iou
from tools.nano.loop import normalise
from tools.nano.model import new_model
from tools.nano.pools import EVALUATION_SEED, IMAGE_SIZE, pixels
from tools.nano.scenes import sample_scene

PREFIXES = ("model.transformer.visual.", "visual.")


@torch.no_grad()
def probe(weights: dict[str, torch.Tensor], count: int) -> dict[str, float]:
    """Figures of a training run's weights on `count` scenes that were never trained on."""
    visual = new_model(ranks=1000, seed=0).transformer.visual
    prefix = next(p for p in PREFIXES if any(key.startswith(p) for key in weights))
    visual.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    heads = DenseHeads(visual.proj.shape[0])
    heads.load_state_dict({k[6:]: v for k, v in weights.items() if k.startswith("heads.")})
    overlaps, errors, spelt = [], [], []
    for seed in range(EVALUATION_SEED, EVALUATION_SEED + count):
        scene = sample_scene(seed)
        features = visual(normalise(pixels(render(scene))[None]))
        places = heads.locate(features)[0]
        classes = heads.classify(features)[0].split(heads.sizes, dim=-1)
        for thing in scene.things:
            box = places[covered(thing.box)].median(0).values.numpy()
            overlaps.append(iou(tuple(box), thing.box))
            errors.append(float(np.abs(box - thing.box).mean()))
        if scene.sign:
            cells = covered(scene.sign.box)
            letters = [int(classes[TEXT + i][cells].mean(0).argmax()) for i in range(LETTERS)]
            spelt.append("".join((*CHARACTERS, "")[letter] for letter in letters) == scene.sign.text)
    return {
        "box_miou": float(np.mean(overlaps)),
        "box_acc50": float(np.mean(np.array(overlaps) >= 0.5)),
        "box_error_pixels": float(np.mean(errors)) * IMAGE_SIZE,
        "signs_spelt": float(np.mean(spelt)),
        "things": len(overlaps),
        "signs": len(spelt),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--count", type=int, default=250)
    options = parser.parse_args()
    state = torch.load(options.source, weights_only=True)
    print(json.dumps({"step": state["step"]} | probe(state["module"], options.count)))
