"""The checkpoint folder of a model in its family's published layout: settings first, weights when they are trained."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwenvl_edge.inputs.tokenizer import open_tokenizer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from tools.nano.save import GENERATION
from tools.nano.talk import qwen_vl
from tools.nano.talk.composing import Composer
from tools.nano.talk.forms import JsonForm, TagForm
from tools.nano.talk.qwen3_vl import MAX_PIXELS, MIN_PIXELS, Qwen3VL, config_dict
from tools.nano.talk.qwen_vl import QwenVL
from tools.nano.talk.scenes import Stock
from tools.nano.talk.talker import Talker
from tools.nano.talk.words import tokens, write_vocab_json

FAMILIES = ("qwen3_vl", "qwen_vl")
CHECKPOINT_FILES = (".json", ".tiktoken", ".txt")  # the files of a checkpoint beside its weights end so
HEADS = "heads.safetensors"  # the read-outs of dense.py, for a training that goes on from a published folder
# Turns in the published form: the runtime and `transformers` both write them so.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def create(
    folder: Path,
    stock: Stock,
    family: str = "qwen3_vl",
    *,
    scenes: int = 2000,
    ranks: int = 1664,
    start: Path | None = None,
) -> None:
    """Write the checkpoint of an untrained model, if `folder` is not there.

    scenes: those its words come from. start: a checkpoint to begin with: of a Qwen-VL the picture side is taken, of a
    Qwen3-VL that `publish` wrote all of it.
    """
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if start and family == "qwen3_vl":
        _copy_published(start, folder)
        return
    found = tokens(stock, ranks, scenes)
    if family == "qwen_vl":
        _write_qwen_vl(folder, found, start)
    else:
        _write_qwen3_vl(folder, found)


def _copy_published(start: Path, folder: Path) -> None:
    """Copy a published folder's checkpoint, the weights last: they make the folder whole; the heads beside it."""
    kind = json.loads((start / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind != "qwen3_vl":
        raise SystemExit(f"{start} is a {kind}; a qwen3_vl begins with a folder that tools.nano.talk.publish wrote.")
    if (heads := start / "training" / HEADS).exists():
        shutil.copyfile(heads, folder.parent / HEADS)
    for path in start.iterdir():
        if path.suffix in CHECKPOINT_FILES:
            shutil.copyfile(path, folder / path.name)
    partial = folder / "model.partial"
    shutil.copyfile(start / "model.safetensors", partial)
    partial.rename(folder / "model.safetensors")


def _write_qwen_vl(folder: Path, found: list[bytes], start: Path | None) -> None:
    config = qwen_vl.config_dict(len(found))
    lines = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(found))
    (folder / "qwen.tiktoken").write_text(lines)
    ends = {"eos_token_id": len(found), "pad_token_id": len(found), "max_new_tokens": 192}
    _write(
        folder,
        {
            "config.json": config,
            "generation_config.json": GENERATION | ends,
            "tokenizer_config.json": {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"},
        },
    )
    state = dict(QwenVL(config).published())
    if start:
        opened = Checkpoint.open(start)
        state |= {name: opened.tensor(name).float() for name in state if name.startswith("transformer.visual.")}
    write_weights(folder, state)


def _write_qwen3_vl(folder: Path, found: list[bytes]) -> None:
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
    _write(folder, files)
    write_weights(folder, Qwen3VL(config).published())


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write model.safetensors in float16, whole or not at all."""
    save_half(folder / "model.safetensors", state)


def save_half(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors in float16, whole or not at all."""
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in state.items()}
    partial = path.with_suffix(".partial")
    save_file(half, partial, metadata={"format": "pt"})
    partial.rename(path)


def new_model(config: dict[str, Any]) -> Talker:
    """A fresh model of the family that a config.json is of."""
    return QwenVL(config) if config["model_type"] == "qwen" else Qwen3VL(config)


def open_folder(folder: Path) -> tuple[Talker, Composer]:
    """The model with its weights, and what writes its prompts."""
    opened = Checkpoint.open(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = new_model(config)
    with torch.no_grad():
        for name, tensor in model.published().items():
            tensor.copy_(opened.tensor(name))
    family = opened.family.runtime_family()
    rows = opened.family.model_info().vocab_size
    tokenizer = open_tokenizer(family, folder / opened.family.tokenizer_file, rows)
    return model, Composer(family, tokenizer, TagForm() if family.name == "qwen_vl" else JsonForm())
