"""Our side of peers.py: bundles of the same shapes, SmolLM2 with the same values, and its float model.

SmolLM2 is exported as what it is to our graphs: the decoder of a Qwen2-VL checkpoint (grouped heads, a tied head) whose
biases on queries, keys and values are zero, beside a tower of one block that nothing asks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import milliseconds
from safetensors.torch import save_file

from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.families import open_family
from qwenvl_edge.families.vocabulary import byte_alphabet
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.detect import detect_family
from qwenvl_edge_export.options import ExportPrecision
from tools.synthetic_checkpoint import random_tensor, write
from tools.synthetic_families import published

FloatArray = npt.NDArray[np.float32]
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
_TOWER = {"depth": 1, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, "in_chans": 3, "patch_size": 14}
_TOWER |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_size": 576}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def write_smollm2(folder: Path, weights: Path) -> None:
    """Write the checkpoint of SmolLM2's weights in `weights`, which peer_files.py made."""
    folder.mkdir(parents=True)
    letters = list(byte_alphabet())
    merge = letters[:2]  # a vocabulary of bytes and one pair: texts are tokenized by llama.cpp
    ids = {token: _SMOLLM2["vocab_size"] - len(_SPECIAL) + number for number, token in enumerate(_SPECIAL)}
    keys = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    keys |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    contents: dict[str, Any] = {
        "config.json": {
            "model_type": "qwen2_vl",
            **_SMOLLM2,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
            "vision_config": _TOWER,
            **{key: ids[token] for key, token in keys.items()},
        },
        "generation_config.json": {"do_sample": False, "eos_token_id": [ids["<|im_end|>"]]},
        "preprocessor_config.json": {
            **{"merge_size": 2, "temporal_patch_size": 2, "patch_size": 14, "min_pixels": 3136, "max_pixels": 50176},
            **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(id_): {"content": token, "special": True} for token, id_ in ids.items()}
        },
        "vocab.json": {token: number for number, token in enumerate([*letters, "".join(merge)])},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{' '.join(merge)}\n", encoding="utf-8")
    family = detect_family(folder / "config.json")
    with np.load(weights) as stored:
        tensors = {published(name, family.name): _tensor(name, shape, stored) for name, shape in family.tensors.items()}
    save_file(tensors, folder / "model.safetensors")


def _tensor(name: str, shape: tuple[int, ...], stored: Any) -> torch.Tensor:
    """A tensor of the checkpoint: SmolLM2's own, a zero bias, or an arbitrary one of the tower."""
    if "visual" in name:
        return random_tensor(name, shape).float()
    if name.endswith("_proj.bias"):
        return torch.zeros(shape)
    parts = name.removeprefix("model.language_model.").split(".")
    if parts[0] == "layers":
        theirs = f"blk.{parts[1]}.{_LAYER['.'.join(parts[2:-1])]}.weight"
    else:
        theirs = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]]
    return torch.from_numpy(stored[theirs].reshape(shape))


def bundle_of(source: Path, path: Path, precision: str, block: int | None) -> Bundle:
    """The bundle at `path`, exported from `source` if it is not there."""
    if not path.exists():
        print(f"exporting {path}", file=sys.stderr)
        export(source, path, precision=ExportPrecision.choose(precision, block=block), check=False)
    return Bundle.open(path)


def smollm2(folder: Path, files: Path) -> dict[str, Bundle]:
    """SmolLM2 in float32, and in 4 and 8 bits with blocks of 32, as llama.cpp's are."""
    source = folder / "checkpoint-smollm2"
    if not (source / "model.safetensors").exists():
        write_smollm2(source, files / "smollm2.npz")
    forms: dict[str, tuple[str, int | None]] = {"fp32": ("fp32", None), "int4": ("int4", 32), "int8": ("int8", 32)}
    return {name: bundle_of(source, folder / f"smollm2-{name}", *form) for name, form in forms.items()}


def preset_1b(folder: Path) -> dict[str, Bundle]:
    """The 1b preset by bits and size of its blocks; the same folders as latency.py --model 1b has."""
    source = folder / "checkpoint-1b"
    if not (source / "model.safetensors.index.json").exists():
        write(source, "1b", pickled=False)
    forms = {"int4, 32": ("1b-int4-32", 32), "int4, 128": ("1b-int4-default", None), "int8, 32": ("1b-int8-32", 32)}
    return {
        name: bundle_of(source, folder / place, name.split(",")[0], block) for name, (place, block) in forms.items()
    }


def tower(folder: Path) -> Bundle:
    """The tower of Qwen2.5-VL 3B in 8 bits, beside one layer of its decoder."""
    source = folder / "checkpoint-tower"
    if not source.exists():
        write(source, "qwen2.5-vl-3b", layers=1)
    return bundle_of(source, folder / "tower-int8", "int8", None)


class Ours:
    """A bundle on the CPU, asked as the peers are: a prompt of random tokens, then tokens one by one.

    dialect: that of its decoder; None: the fastest.
    """

    def __init__(self, bundle: Bundle, threads: int, context: int, dialect: str | None = None):
        self.bundle, self.embedding = bundle, bundle.embedding
        self.backend = OnnxRuntimeBackend(bundle, threads=threads, dialect=dialect)
        self.family = open_family(bundle.manifest)
        self.cache = self.backend.new_cache(1, context)

    def logits(self, ids: Sequence[int], start: int, *, every: bool = False) -> FloatArray:
        """Logits [K, V] after the last of `ids`, or after each, with `start` tokens before them in the cache."""
        tokens = len(ids)
        rows = self.family.positions(start + tokens).rows(start, tokens)
        wanted = np.arange(tokens) if every else np.array([tokens - 1])
        embeds = self.embedding[np.array([ids])]
        return self.backend.decode(self.cache, embeds, rows, np.array([start]), wanted[None])[0]

    def turn(self, prompt: int, steps: int) -> dict[str, Any]:
        """Milliseconds of a prompt and of each token after it."""
        ids = np.random.default_rng(0).integers(0, self.bundle.manifest.model.vocab_size, prompt + steps).tolist()
        prefill = milliseconds(lambda: self.logits(ids[:prompt], 0))
        times = [milliseconds(lambda at=at: self.logits(ids[at : at + 1], at)) for at in range(prompt, len(ids))]
        return {"prefill": prefill, "decode": times}

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """`count` tokens after a prompt, each the likeliest one."""
        found = [int(self.logits(ids, 0)[-1].argmax())]
        while len(found) < count:
            found.append(int(self.logits(found[-1:], len(ids) + len(found) - 1)[-1].argmax()))
        return found


def float_greedy(weights: Path, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Answers of transformers' Llama in float32 to each prompt: `count` likeliest tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shared = {key: value for key, value in _SMOLLM2.items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": _SMOLLM2["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(**shared, rope_parameters=rope)).eval()
    with np.load(weights) as stored:
        state = {
            name: _tensor(name.replace("model.", "model.language_model.", 1), tuple(value.shape), stored)
            for name, value in model.state_dict().items()
            if name != "lm_head.weight"
        }
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    answers = []
    with torch.inference_mode():
        for ids in prompts:
            found: list[int] = []
            given, past = torch.tensor([list(ids)]), None
            while len(found) < count:
                step = model(given, past_key_values=past, use_cache=True)
                past, given = step.past_key_values, step.logits[:, -1:].argmax(-1)
                found.append(int(given))
            answers.append(found)
    return answers
