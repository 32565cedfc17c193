"""Random checkpoints in the published layout, small enough for unit tests.

seq_length is 16, so that dynamic NTK and log-n attention act on prompts of a few dozen tokens.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qwenvl_edge_export.checkpoint.reader import expected_shapes
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig

RANKS = 256
SMALL_VISUAL = {
    "width": 32,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "patch_size": 14,
    "image_size": 42,
    "output_dim": 128,
    "image_start_id": RANKS + 214,
    "n_queries": 4,
}
SMALL_CONFIG = {
    "model_type": "qwen",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 32,
    "intermediate_size": 192,
    "vocab_size": 480,
    "seq_length": 16,
    "max_position_embeddings": 512,
    "rotary_emb_base": 10000,
    "layer_norm_epsilon": 1e-6,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}
GENERATION = {"chat_format": "chatml", "do_sample": True, "top_p": 0.3, "top_k": 0, "max_new_tokens": 16}


def config_dict(visual: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The content of a small config.json, with changes."""
    return SMALL_CONFIG | {"visual": SMALL_VISUAL | (visual or {})} | changes


def random_tensors(raw: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights whose activations stay of order one; norms near one, everything else normal."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(QwenVLConfig.from_dict(raw)).items():
        values = torch.randn(shape, generator=generator)
        if "ln_" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif len(shape) > 1 and "wte" not in name:
            values = values * shape[-1] ** -0.5
        tensors[name] = values.to(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    *,
    raw: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shards: int = 1,
    pickled: bool = False,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of configuration `raw` to `folder`, as safetensors or pickled .bin files."""
    raw = raw or config_dict()
    tensors = random_tensors(raw, dtype, seed) if tensors is None else tensors
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").write_text(json.dumps(generation or GENERATION))
    lines = (f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(RANKS))
    (folder / "qwen.tiktoken").write_text("".join(lines))
    write_weights(folder, tensors, shards=shards, pickled=pickled)
    return folder


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], *, shards: int = 1, pickled: bool = False) -> None:
    """Write the weight files of the published layout."""
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    save = torch.save if pickled else save_file
    if shards == 1:
        save(tensors, folder / f"{stem}{suffix}")
        return
    weight_map = {}
    names = sorted(tensors)
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}{suffix}"
        part = {name: tensors[name].clone() for name in names[i::shards]}
        save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
