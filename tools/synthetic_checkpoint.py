"""Checkpoints of random weights in the published layout, of any size, a shard at a time.

    python -m tools.synthetic_checkpoint FOLDER --preset {tiny,small,1b,wide,full,qwen3-vl-2b,...}
        [--format {bin,safetensors}] [--tokenizer FILE]

"full" has the names and shapes of the published Qwen-VL: 853 tensors, 9,656,935,168 parameters, 19.3 GB. "wide" has
three decoder layers of its width and little else. "small" has its vocabulary, its pictures of 448 pixels and a
twentieth of its parameters. Presets such as qwen3-vl-2b have those of later published models (synthetic_families.py).
What such a model says is noise; it stands in for the real one where size is what matters. Values are normal and scaled
so that activations stay of order one; those of large tensors repeat one pool of values from different places.
"""

from __future__ import annotations

import argparse
import base64
import functools
import itertools
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.families.detect import detect_family
from qwenvl_edge_export.families.qwen_vl.family import QwenVLExport
from tools import synthetic_families

SHARD_BYTES = 2_000_000_000
PRESETS = ("tiny", "small", "1b", "wide", "full", *synthetic_families.PRESETS)
_POOL = 1 << 24
_SPECIAL_TOKENS = 217  # of the family, after the ranks; <img> is the 215th
_COMMON = {
    "model_type": "qwen",
    "architectures": ["QWenLMHeadModel"],
    "seq_length": 2048,
    "max_position_embeddings": 8192,
    "rotary_emb_base": 10000,
    "layer_norm_epsilon": 1e-6,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "no_bias": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
GENERATION = {"chat_format": "chatml", "do_sample": True, "top_p": 0.3, "top_k": 0, "max_new_tokens": 512}


def preset(name: str, layers: int | None = None) -> dict[str, Any]:
    """The config.json of a preset of Qwen-VL, "tiny", "small", "1b", "wide" or "full".

    layers: of the decoder, if not the preset's.
    """
    ranks, hidden, own_layers, heads, inner, vision = {
        "tiny": (256, 128, 2, 4, 192, (32, 2, 2, 2.0, 42, 4)),
        "small": (151643, 1024, 6, 8, 8192, (512, 8, 8, 4.0, 448, 256)),
        "1b": (32000, 2048, 16, 16, 11008, (1024, 12, 16, 4.0, 448, 256)),
        "wide": (2000, 4096, 3, 32, 22016, (64, 2, 4, 4.0, 56, 16)),
        "full": (151643, 4096, 32, 32, 22016, (1664, 48, 16, 4.9231, 448, 256)),
    }[name]
    width, blocks, vision_heads, ratio, size, queries = vision
    visual = {"width": width, "layers": blocks, "heads": vision_heads, "mlp_ratio": ratio, "patch_size": 14}
    visual |= {"image_size": size, "output_dim": hidden, "image_start_id": ranks + 214, "n_queries": queries}
    return _COMMON | {
        "hidden_size": hidden,
        "num_hidden_layers": own_layers if layers is None else layers,
        "num_attention_heads": heads,
        "kv_channels": hidden // heads,
        "intermediate_size": inner,
        "vocab_size": -(-(ranks + _SPECIAL_TOKENS) // 128) * 128,
        "visual": visual,
    }


def write(
    folder: Path,
    name: str,
    *,
    pickled: bool | None = None,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    layers: int | None = None,
) -> int:
    """Write the checkpoint of preset `name` in bfloat16 to the new folder `folder`; return its number of parameters.

    Args:
        folder: must not exist.
        name: a preset.
        pickled: pytorch_model-*.bin instead of safetensors; None takes what the published model has.
        tokenizer: a qwen.tiktoken to copy; by default a vocabulary is made up: bytes, then pairs, then triples.
        shard_bytes: most bytes of tensors in one file, and so the memory that this takes.
        layers: decoder layers, if not the preset's.
    """
    family = write_settings(folder, name, tokenizer, layers)
    shapes = {synthetic_families.published(key, family.name): shape for key, shape in family.tensors.items()}
    pickled = name not in synthetic_families.PRESETS if pickled is None else pickled
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    groups = list(_groups(shapes, shard_bytes))
    weight_map = {}
    for i, names in enumerate(groups):
        file = f"{stem}-{i + 1:05}-of-{len(groups):05}{suffix}"
        tensors = {tensor: random_tensor(tensor, shapes[tensor]) for tensor in names}
        (torch.save if pickled else save_file)(tensors, folder / file)
        weight_map.update(dict.fromkeys(names, file))
        print(f"{file}: {len(names)} tensors", file=sys.stderr)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index, indent=2))
    return count


def write_settings(folder: Path, name: str, tokenizer: Path | None = None, layers: int | None = None) -> ExportFamily:
    """Write everything but the weights of preset `name` to the new folder `folder`; return what it configures."""
    if name in synthetic_families.PRESETS:
        synthetic_families.write_settings(folder, name, layers)
        return detect_family(folder / "config.json")
    raw = preset(name, layers)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    if tokenizer is None:
        _write_vocabulary(folder / QwenVLExport.tokenizer_file, raw["visual"]["image_start_id"] - 214)
    else:
        shutil.copyfile(tokenizer, folder / QwenVLExport.tokenizer_file)
    return QwenVLExport.from_dict(raw)


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Bfloat16 values, other ones for each name, as `scaled` says."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    count = torch.Size(shape).numel()
    if count < _POOL:
        values = torch.randn(count, generator=generator)
    else:
        start = int(torch.randint(_POOL, (1,), generator=generator))
        repeats = -(-(start + count) // _POOL)
        values = _pool().repeat(repeats)[start : start + count]
    return scaled(name, values.reshape(shape)).clone()


def scaled(name: str, values: torch.Tensor) -> torch.Tensor:
    """Normal values as the tensor `name` in bfloat16: norms near one, matrices that keep the size of their input."""
    if ("ln_" in name or "norm" in name) and name.endswith("weight"):
        values = values.float() * 0.1 + 1
    elif values.ndim > 1 and "wte" not in name and "embed_tokens" not in name:
        values = values * (values[0].numel() if values.ndim > 4 else values.shape[-1]) ** -0.5
    return values.to(torch.bfloat16)


@functools.cache
def _pool() -> torch.Tensor:
    return torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def _groups(shapes: Mapping[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        added = 2 * torch.Size(shape).numel()
        if names and size + added > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += added
    yield names


def _write_vocabulary(path: Path, ranks: int) -> None:
    tokens = itertools.chain.from_iterable(itertools.product(range(256), repeat=length) for length in (1, 2, 3))
    with path.open("w") as file:
        for rank, token in enumerate(itertools.islice(tokens, ranks)):
            file.write(f"{base64.b64encode(bytes(token)).decode()} {rank}\n")


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--format", choices=("bin", "safetensors"), help="default: as the model was published")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="copy this vocabulary instead of making one up")
    options = parser.parse_args()
    pickled = None if options.format is None else options.format == "bin"
    count = write(options.folder, options.preset, pickled=pickled, tokenizer=options.tokenizer)
    print(f"{options.folder}: {count:,} parameters")


if __name__ == "__main__":
    main()
