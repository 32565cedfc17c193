"""Checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL of random sizes and forms, beside transformers' models of them.

`draw` decides everything by a seed: dimensions, the form of config.json, names, types and shards of the weights. The
tokenizer is a golden checkpoint's.
"""

from __future__ import annotations

import importlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from qwenvl_edge.bundle.contract import PIXEL_VALUES
from qwenvl_edge.families.base import Family
from qwenvl_edge.inputs.prompt import Prompt
from support.golden_graphs import golden
from support.random_checkpoint import write_weights

MODELS = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
_USED_ROWS = 544  # of the golden tokenizers, at most
_FORMS = ("published", "nested", "version 5")
_TEXT_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "head_dim", "attention_bias"),
    *("rope_theta", "rope_scaling"),
)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class AnyCheckpoint:
    """A checkpoint's folder, what was drawn, and transformers' model with the same weights in float32."""

    folder: Path
    raw: Mapping[str, Any]
    storage: Mapping[str, Any]
    model: nn.Module

    def __repr__(self) -> str:
        return f"{json.dumps(self.raw)} stored as {self.storage}"


def draw(folder: Path, family: str, seed: int) -> AnyCheckpoint:
    """Write a checkpoint to the new folder `folder`."""
    dice = random.Random(f"{family} {seed}")
    shutil.copytree(golden(family), folder, ignore=shutil.ignore_patterns("*.npz", "images", "*.safetensors"))
    raw = _config(dice, family, json.loads((folder / "config.json").read_text()))
    _write_processor(dice, folder, raw["vision_config"])
    storage = {
        "form": "published" if family == "qwen3_vl" else dice.choice(_FORMS),
        "names": dice.choice(["published", "of modules"]),
        "dtype": dice.choice(list(_DTYPES)),
        "shards": dice.choice([1, 2, 5]),
        "head repeated": dice.random() < 0.3,
        "defaults left out": dice.random() < 0.5,
    }
    model = _model(family, raw, _DTYPES[storage["dtype"]], seed)
    _write_weights(folder, family, model, storage, tied=raw["tie_word_embeddings"])
    written = _formed(raw, storage["form"])
    if storage["defaults left out"]:
        _leave_out_defaults(written, family)
    (folder / "config.json").write_text(json.dumps(written))
    return AnyCheckpoint(folder, raw, storage, model)


def _config(dice: random.Random, family: str, golden_raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the published form, its token ids those of the golden one."""
    three = family == "qwen3_vl"
    kv_heads, ratio = dice.choice([1, 2, 3]), dice.choice([1, 2, 3, 4, 7])
    heads, head_dim = kv_heads * ratio, dice.choice([8, 12, 16, 20, 24, 32, 40, 64])
    hidden = dice.choice([40, 64, 72, 100, 128]) if three else heads * head_dim
    ids = {key: value for key, value in golden_raw.items() if key.endswith("_token_id")}
    tied = dice.random() < 0.5
    half = head_dim // 2
    rows = dice.randint(1, half // 3)
    section = [half - 2 * rows, rows, rows]
    kind = {"mrope_interleaved": True, "rope_type": "default"} if three else {"type": "mrope"}
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": dice.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": dice.choice([32, 60, 100, 136, 171, 256]),
        "vocab_size": _USED_ROWS + dice.choice([0, 1, 32, 96]),
        "max_position_embeddings": dice.choice([2048, 32768]),
        "rms_norm_eps": dice.choice([1e-6, 1e-5]),
        "rope_theta": dice.choice([10000.0, 1e6, 5e6]),
        "rope_scaling": {**kind, "mrope_section": section},
        "hidden_act": "silu",
    }
    vision = _vision(dice, family, hidden)
    top = {"model_type": family, "architectures": [MODELS[family]], "tie_word_embeddings": tied} | ids
    if not three:
        return top | text | {"vision_config": vision}
    vision["deepstack_visual_indexes"] = vision["deepstack_visual_indexes"][: text["num_hidden_layers"]]
    return top | {"text_config": text | {"head_dim": head_dim}, "vision_config": vision}


def _vision(dice: random.Random, family: str, hidden: int) -> dict[str, Any]:
    depth, heads = dice.randint(1, 5), dice.choice([1, 2, 3, 4])
    width = heads * dice.choice([4, 8, 12, 16, 20, 72])
    patch, merge = dice.choice([(14, 2), (16, 2), (16, 2), (8, 2), (14, 1), (8, 3)])
    tower = {"depth": depth, "num_heads": heads, "patch_size": patch, "spatial_merge_size": merge}
    tower |= {"temporal_patch_size": dice.choice([2, 2, 2, 1, 3]), dice.choice(["in_chans", "in_channels"]): 3}
    if family == "qwen2_vl":
        return tower | {"embed_dim": width, "hidden_size": hidden, "mlp_ratio": dice.choice([1, 3, 4])}
    tower |= {"hidden_size": width, "out_hidden_size": hidden}
    tower |= {"intermediate_size": dice.choice([24, 52, 100, 136, 205])}
    if family == "qwen2_5_vl":
        blocks = sorted(dice.sample(range(depth), dice.randint(0, depth)))
        side = patch * merge
        window = dice.choice([side, 2 * side, 3 * side, 4 * side, 5 * side, 4 * side + 5])
        seconds = dice.choice([1, 2, 4])
        return tower | {"fullatt_block_indexes": blocks, "window_size": window, "tokens_per_second": seconds}
    blocks = dice.sample(range(depth), dice.randint(0, min(depth, 3)))
    return tower | {"deepstack_visual_indexes": blocks, "num_position_embeddings": dice.choice([3, 7, 12, 20]) ** 2}


def _write_processor(dice: random.Random, folder: Path, vision: Mapping[str, Any]) -> None:
    token = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
    least, most = dice.choice([1, 4]) * token, dice.choice([9, 20, 50]) * token
    path, clips = folder / "preprocessor_config.json", folder / "video_preprocessor_config.json"
    for file in (path, clips):
        if not file.is_file():
            continue
        raw = json.loads(file.read_text())
        for key in ("size", "min_pixels", "max_pixels"):
            raw.pop(key, None)
        raw |= {"patch_size": vision["patch_size"], "merge_size": vision["spatial_merge_size"]}
        raw |= {"temporal_patch_size": vision["temporal_patch_size"]}
        sizes = {"size": {"shortest_edge": least, "longest_edge": most if file == path else 4 * most}}
        plain = {"min_pixels": least, "max_pixels": sizes["size"]["longest_edge"]}
        raw |= dice.choice([sizes, plain, sizes | plain])
        file.write_text(json.dumps(raw))


def _model(family: str, raw: Mapping[str, Any], dtype: torch.dtype, seed: int) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = CONFIG_MAPPING[family].from_dict(dict(raw))
    config._attn_implementation = "eager"
    model: nn.Module = getattr(module, MODELS[family])(config).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            values = 0.1 * values + float(name.endswith("weight"))
        elif parameter.ndim > 1 and "embed" not in name.split(".")[-2]:
            values *= parameter[0].numel() ** -0.5
        parameter.copy_(values.to(dtype).float())
    return model


def _write_weights(folder: Path, family: str, model: nn.Module, storage: Mapping[str, Any], *, tied: bool) -> None:
    head = "lm_head.weight"
    tensors = {name: tensor.to(_DTYPES[storage["dtype"]]).clone() for name, tensor in model.state_dict().items()}
    if tied and not storage["head repeated"]:
        tensors.pop(head, None)
    if storage["names"] == "published" and family != "qwen3_vl":
        renamed = ((name.replace("model.visual.", "visual."), tensor) for name, tensor in tensors.items())
        tensors = {name.replace("model.language_model.", "model."): tensor for name, tensor in renamed}
    write_weights(folder, tensors, shards=storage["shards"])


def _formed(raw: Mapping[str, Any], form: str) -> dict[str, Any]:
    """A flat config.json as later writers nest it."""
    if form == "published":
        return dict(raw)
    text = {key: raw[key] for key in _TEXT_KEYS if key in raw}
    rope = {"rope_type": "default", "mrope_section": text["rope_scaling"]["mrope_section"]}
    if form == "version 5":
        del text["rope_scaling"]
        text["rope_parameters"] = rope | {"rope_theta": text.pop("rope_theta")}
    else:
        text["rope_scaling"] = rope | {"type": "default"}
    return {key: value for key, value in raw.items() if key not in _TEXT_KEYS} | {"text_config": text}


def _leave_out_defaults(raw: dict[str, Any], family: str) -> None:
    """Leave out of the sections what transformers' classes have by themselves, as versions before 5 wrote them."""
    defaults = CONFIG_MAPPING[family]().to_dict()
    for section in ("text_config", "vision_config"):
        raw[section] = {k: v for k, v in raw.get(section, {}).items() if defaults[section].get(k, ...) != v}
    if not raw["text_config"]:
        del raw["text_config"]


@torch.inference_mode()
def logits_of(model: nn.Module, family: Family, prompt: Prompt) -> np.ndarray:
    """Logits [T, V] of a prompt of the runtime, whose pictures' pixels it is given."""
    media: dict[str, list[Tensor]] = {}
    for visual in prompt.pictures:
        frames, rows, columns = visual.layout(family).grid
        merge = family.config.merge_size
        pixels = torch.from_numpy(visual.vision_inputs(family)[PIXEL_VALUES]).flatten(0, 1)
        clip = bool(getattr(visual, "times", None))
        pixels_name, grid_name = (
            ("pixel_values_videos", "video_grid_thw") if clip else ("pixel_values", "image_grid_thw")
        )
        media.setdefault(pixels_name, []).append(pixels)
        media.setdefault(grid_name, []).append(torch.tensor([[frames, rows * merge, columns * merge]]))
        if clip and family.name == "qwen2_5_vl":
            media.setdefault("second_per_grid_ts", []).append(torch.tensor([visual.layout(family).seconds]))
    ids = torch.from_numpy(np.asarray(prompt.ids, np.int64))[None]
    tokens = family.special_tokens
    kinds = (ids == tokens["<|image_pad|>"]).int() + 2 * (ids == tokens["<|video_pad|>"]).int()
    joined = {name: torch.cat(parts) for name, parts in media.items()}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **joined)
    found: np.ndarray = out.logits[0].numpy()
    return found
