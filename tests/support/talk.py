"""Stand-ins for what tools/nano/talk fetches: sprites of every kind and style, drawn here."""

import colorsys
from pathlib import Path
from typing import Any

import numpy as np

from tools.nano.talk.icons import STYLES
from tools.nano.talk.kinds import NAMES


def write_sprites(folder: Path) -> Path:
    """Write sprites.npz: an ellipse or a box of one hue for each kind, wider or higher in each style."""
    arrays = {}
    for number, kind in enumerate(NAMES):
        for index, style in enumerate(STYLES):
            height, width = 32 + 4 * index, 32 + 8 * (number % 5)
            y, x = np.mgrid[:height, :width]
            inside = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 < 0.25) | (number % 2 == 0)
            colour = [round(255 * c) for c in colorsys.hsv_to_rgb(number / len(NAMES), 0.9, 0.8)]
            arrays[f"{kind}/{style}"] = np.dstack([np.full((height, width, 3), colour), 255 * inside]).astype(np.uint8)
    path = folder / "sprites.npz"
    np.savez(path, **arrays)
    return path


def narrow(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model with less of everything."""
    if config["model_type"] == "qwen":
        visual = config["visual"] | {"width": 64, "heads": 1, "layers": 2, "output_dim": 128}
        narrow = {"hidden_size": 128, "num_attention_heads": 4, "kv_channels": 32, "intermediate_size": 256}
        return config | narrow | {"num_hidden_layers": 3, "visual": visual}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 1, "depth": 2, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0]}
    sections = {"text_config": config["text_config"] | text, "vision_config": config["vision_config"] | vision}
    return config | sections
