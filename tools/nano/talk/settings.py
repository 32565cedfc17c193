"""The checkpoint folder of a model in its family's published layout: settings first, weights when they are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwenvl_edge.inputs.tokenizer import open_tokenizer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from tools.nano.talk.composing import Composer
from tools.nano.talk.forms import JsonForm
from tools.nano.talk.qwen3_vl import MAX_PIXELS, MIN_PIXELS, Qwen3VL, config_dict
from tools.nano.talk.scenes import Stock
from tools.nano.talk.words import tokens, write_vocab_json

# Turns in the published form: the runtime and `transformers` both write them so.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def create(folder: Path, stock: Stock, *, scenes: int = 2000, ranks: int = 1664) -> None:
    """Write the checkpoint of an untrained Qwen3-VL, if `folder` is not there; scenes: those its words come from."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    found = tokens(stock, ranks, scenes)
    special = write_vocab_json(found, folder)
    config = config_dict(len(found))
    ends = [special["<|im_end|>"], special["<|endoftext|>"]]
    files = {
        "config.json": config,
        "generation_config.json": {"do_sample": False, "eos_token_id": ends, "max_new_tokens": 192},
        "preprocessor_config.json": {
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            "patch_size": config["vision_config"]["patch_size"],
            "merge_size": config["vision_config"]["spatial_merge_size"],
            "temporal_patch_size": config["vision_config"]["temporal_patch_size"],
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        "chat_template.json": {"chat_template": TEMPLATE},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_weights(folder, Qwen3VL(config).state_dict())


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write model.safetensors in float16, whole or not at all."""
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
    partial = folder / "model.partial"
    save_file(half, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def open_folder(folder: Path) -> tuple[Qwen3VL, Composer]:
    """The model with its weights, and what writes its prompts."""
    opened = Checkpoint.open(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Qwen3VL(config)
    model.load_state_dict({name: opened.tensor(name).float() for name in opened.family.tensors})
    family = opened.family.runtime_family()
    tokenizer = open_tokenizer(family, folder / opened.family.tokenizer_file, config["text_config"]["vocab_size"])
    return model, Composer(family, tokenizer, JsonForm())
