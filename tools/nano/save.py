"""Writes a trained model as a checkpoint in the published layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwenvl_edge_export.families.qwen_vl.reference import QwenVL
from tools.nano.model import config_dict, new_model
from tools.nano.vocabulary import Codec

GENERATION = {
    "chat_format": "chatml",
    "do_sample": False,  # a nano model is asked for facts
    "top_p": 0.3,
    "top_k": 0,
    "max_new_tokens": 128,
    "max_window_size": 6144,
}


def trained_model(folder: Path) -> tuple[QwenVL, Codec]:
    """The model of FOLDER/language.pt."""
    codec = Codec(folder / "qwen.tiktoken")
    model = new_model(codec.ranks, seed=0)
    saved = torch.load(folder / "language.pt", weights_only=True)["module"]
    model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
    return model.eval(), codec


def write_checkpoint(folder: Path, target: Path) -> None:
    """Round the weights to fp16 and write the checkpoint folder `target`."""
    model, codec = trained_model(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    ends = {"eos_token_id": codec.ranks, "pad_token_id": codec.ranks}
    tokenizer = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"}
    files = {
        "config.json": config_dict(codec.ranks),
        "generation_config.json": GENERATION | ends,
        "tokenizer_config.json": tokenizer,
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(folder / "qwen.tiktoken", target / "qwen.tiktoken")
