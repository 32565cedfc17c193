"""The golden checkpoints of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, and their graphs as plain ONNX Runtime sessions.

What the host gives the graphs is restated here from the published code, so that a graph is tested without the runtime.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from safetensors.torch import load_file, save_file

from qwenvl_edge import _core
from qwenvl_edge.bundle import contract
from qwenvl_edge_export.families.dynamic_vl.config import DynamicVLSource, VisionConfig
from qwenvl_edge_export.families.dynamic_vl.decoder import decoder_of
from qwenvl_edge_export.families.dynamic_vl.tensors import EMBEDDING, canonical, tensor_shapes
from qwenvl_edge_export.families.dynamic_vl.vision import build_vision
from qwenvl_edge_export.families.dynamic_vl.vision_roles import tower_of
from qwenvl_edge_export.graphs.data_file import DataFile
from qwenvl_edge_export.graphs.decoder import build_decoder
from qwenvl_edge_export.graphs.weight_layout import decoder_layout, vision_layout
from qwenvl_edge_export.options import ExportPrecision
from support.dialects import cache_dtype
from support.paths import DATA
from tools.synthetic_checkpoint import random_tensor
from tools.synthetic_families import published

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PICTURES = "abcdef"
PROMPTS = ("one", "two", "text", "video2", "video5", "mixed")
CAPACITY = 160
Arrays = Mapping[str, np.ndarray]


def golden(family: str) -> Path:
    """The folder of a golden checkpoint."""
    return DATA / "families" / family


def config_of(family: str) -> DynamicVLSource:
    """Its configuration."""
    return DynamicVLSource.from_dict(json.loads((golden(family) / "config.json").read_text()))


def resized_checkpoint(folder: Path, family: str, text: Mapping[str, Any], vision: Mapping[str, Any] = {}) -> Path:
    """Write a golden checkpoint's settings with other sizes and random weights to the new folder `folder`."""
    shutil.copytree(golden(family), folder, ignore=shutil.ignore_patterns("*.npz", "images", "*.safetensors"))
    raw = json.loads((folder / "config.json").read_text())
    raw.get("text_config", raw).update(text)
    raw["vision_config"].update(vision)
    width = raw.get("text_config", raw)["hidden_size"]
    raw["vision_config"]["hidden_size" if family == "qwen2_vl" else "out_hidden_size"] = width
    (folder / "config.json").write_text(json.dumps(raw))
    shapes = tensor_shapes(DynamicVLSource.from_dict(raw))
    tensors = {published(name, family): random_tensor(name, shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


# Widths that blocks of 128 divide, as those of the published decoders; the golden ones are narrower.
_WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 16, "num_key_value_heads": 8}


def wide_checkpoint(folder: Path, family: str) -> Path:
    """Write a checkpoint of a family that int4 for a GPU takes."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4} if family == "qwen3_vl" else {}
    return resized_checkpoint(folder, family, _WIDE | heads)


class GoldenGraphs:
    """Graphs of a golden checkpoint at one precision, written into `folder`."""

    def __init__(self, family: str, folder: Path, precision: ExportPrecision):
        self.family = family
        self.config = config_of(family)
        self.tensors = {
            canonical(name): tensor for name, tensor in load_file(golden(family) / "model.safetensors").items()
        }
        self._folder = folder
        shapes = tensor_shapes(self.config)
        assert {name: tuple(tensor.shape) for name, tensor in self.tensors.items()} == shapes
        self._tower, self._decoder = tower_of(self.config, shapes), decoder_of(self.config, shapes)
        precision = precision.fitted({weight.name: weight.shape for weight in self._decoder.linear_weights()})
        self._layouts = vision_layout(self._tower, precision.vision), decoder_layout(self._decoder, precision.decoder)
        for layout in self._layouts:
            DataFile(folder, layout).write(self.tensors.__getitem__, lambda count: None)

    @cached_property
    def text(self) -> Arrays:
        """golden_text.npz."""
        return dict(np.load(golden(self.family) / "golden_text.npz"))

    @cached_property
    def vision(self) -> Arrays:
        """golden_vision.npz."""
        return dict(np.load(golden(self.family) / "golden_vision.npz"))

    @cached_property
    def embedding(self) -> np.ndarray:
        """The embedding table [V, H]."""
        return self.tensors[EMBEDDING].float().numpy()

    def vision_session(self, dialect: str) -> ort.InferenceSession:
        """The vision graph in a dialect."""
        config = self.config
        model = build_vision(config.variant, config.vision, self._tower, self._layouts[0], dialect)
        return self._session(model, f"vision.{dialect}.onnx")

    def decoder_session(self, dialect: str) -> ort.InferenceSession:
        """The decoder graph in a dialect."""
        return self._session(build_decoder(self._decoder, self._layouts[1], dialect), f"decoder.{dialect}.onnx")

    def _session(self, model: ir.Model, name: str) -> ort.InferenceSession:
        path = self._folder / name
        ir.save(model, path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if "native" in name:
            options.register_custom_ops_library(_core.__file__)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def encode(session: ort.InferenceSession, config: VisionConfig, pixels: np.ndarray, grid: Any) -> list[np.ndarray]:
    """Features [Q, H], and deepstack features [L, Q, H] where there are some, of a picture or clip of pixels [M, C]."""
    frames, rows, columns = (int(n) for n in grid)
    feed = {contract.PIXEL_VALUES: pixels.reshape(frames, rows * columns, -1)} | tables(config, rows, columns)
    features, *deepstack = session.run(None, feed)
    return [features.reshape(-1, features.shape[-1]), *(x.reshape(len(x), -1, x.shape[-1]) for x in deepstack)]


def tables(config: VisionConfig, rows: int, columns: int) -> dict[str, np.ndarray]:
    """The vision graph's inputs that follow from a grid of patches."""
    row, column = _places(rows, columns)
    exponents = np.arange(0, config.head_dim // 2, 2, dtype=np.float32) / np.float32(config.head_dim // 2)
    places = np.stack([row, column], -1).astype(np.float32)
    angles = (places[:, :, None] / np.float32(10000) ** exponents).reshape(len(row), -1)
    found = {contract.PATCH_COS: np.cos(angles), contract.PATCH_SIN: np.sin(angles)}
    if config.window_size:
        found |= _windows(rows, columns, config.window_size // config.factor)
    if config.positions:
        found |= _interpolation((row, rows), (column, columns), round(config.positions**0.5))
    return found


def _places(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each patch; patches of a token come one after another."""
    grid = np.mgrid[:rows, :columns].reshape(2, rows // 2, 2, columns // 2, 2)
    row, column = grid.swapaxes(2, 3).reshape(2, -1)
    return row, column


def _windows(rows: int, columns: int, side: int) -> dict[str, np.ndarray]:
    """Windows of side x side tokens, found patch by patch."""
    row, column = _places(rows, columns)
    across = -(-columns // 2 // side)
    members: dict[int, list[int]] = {}
    for patch, window in enumerate(row // 2 // side * across + column // 2 // side):
        members.setdefault(int(window), []).append(patch)
    size = 4 * side * side
    gather, keys = (np.zeros((len(members), size), kind) for kind in (np.int64, bool))
    back = np.empty(len(row), np.int64)
    for window, patches in members.items():
        gather[window, : len(patches)], keys[window, : len(patches)] = patches, True
        back[patches] = window * size + np.arange(len(patches))
    return {
        contract.WINDOW_GATHER: gather.reshape(-1),
        contract.WINDOW_KEYS: keys[:, None, None],
        contract.WINDOW_BACK: back,
    }


def _interpolation(row: tuple[np.ndarray, int], column: tuple[np.ndarray, int], side: int) -> dict[str, np.ndarray]:
    taps = []
    for place, count in (row, column):
        source = place * (side - 1) / max(count - 1, 1)
        low = np.floor(source).astype(np.int64)
        taps.append(((low, 1 - (source - low)), (np.minimum(low + 1, side - 1), source - low)))
    pairs = [(y * side + x, a * b) for y, a in taps[0] for x, b in taps[1]]
    return {
        contract.POSITION_INDEX: np.stack([index for index, _ in pairs], 1),
        contract.POSITION_WEIGHT: np.stack([weight for _, weight in pairs], 1).astype(np.float32),
    }


class GoldenDecoder:
    """A decoder session with a cache of its own for `batch` rows, given what the golden data of a prompt say."""

    def __init__(self, graphs: GoldenGraphs, session: ort.InferenceSession, batch: int = 1):
        self._graphs = graphs
        self._session = session
        self._names = [node.name for node in session.get_outputs()]
        text = graphs.config.text
        shape = (batch, text.num_kv_heads, CAPACITY, text.head_dim)
        past = [value for value in session.get_inputs() if value.name.startswith(contract.PAST)]
        self._cache = {value.name: np.zeros(shape, cache_dtype(value)) for value in past}

    def __call__(
        self, embeds: np.ndarray, rope: tuple[np.ndarray, np.ndarray], start: Any, deepstack: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits [B, T, V] of embeddings [B, T, H] from places `start` on, with rotary rows [B, T, D / 2]."""
        batch, tokens, hidden = embeds.shape
        places = np.broadcast_to(np.asarray(start, np.int64), (batch,))
        feed = {contract.INPUTS_EMBEDS: embeds, contract.ROPE_COS: rope[0], contract.ROPE_SIN: rope[1]}
        feed[contract.LOGITS_INDICES] = np.tile(np.arange(tokens), (batch, 1))
        names = {node.name for node in self._session.get_inputs()}
        if contract.WRITE_INDICES in names:
            feed[contract.WRITE_INDICES] = places
        else:
            feed[contract.LAST_INDICES] = (places + tokens - 1).astype(np.int32)
            feed[contract.TOTAL_LENGTH] = np.array([places.max() + tokens], np.int32)
        if contract.DEEPSTACK in names:
            layers = len(self._graphs.config.vision.deepstack)
            feed[contract.DEEPSTACK] = np.zeros((layers, 1, 1, hidden), np.float32) if deepstack is None else deepstack
        found = dict(zip(self._names, self._session.run(None, feed | self._cache), strict=True))
        self._cache = {name: found[contract.present_of(name)] for name in self._cache}
        return found[contract.LOGITS]


def rope_rows(graphs: GoldenGraphs, prompt: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [count, D / 2] of a golden prompt's sequence: the recorded ones, then those of words."""
    text, config = graphs.text, graphs.config.text
    length = len(text[f"{prompt}.input_ids"])
    places = np.arange(length, count) + int(text[f"{prompt}.rope_delta"][0])
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    angles = places[:, None].astype(np.float32) / np.float32(config.rope_theta) ** exponents
    cos, sin = (text[f"{prompt}.rope_{part}"] for part in ("cos", "sin"))
    return np.concatenate([cos, np.cos(angles)])[:count], np.concatenate([sin, np.sin(angles)])[:count]


def deepstack_rows(graphs: GoldenGraphs, vision: ort.InferenceSession, prompt: str) -> np.ndarray | None:
    """[L, T, H] of a golden prompt's tokens, encoded by a vision session; None in a family without them."""
    config, text = graphs.config.vision, graphs.text
    if not config.deepstack:
        return None
    kinds = text[f"{prompt}.mm_token_type_ids"]
    rows = np.zeros((len(config.deepstack), len(kinds), config.output_width), np.float32)
    for kind, pixels, grids in ((1, "pixel_values", "image_grid_thw"), (2, "pixel_values_videos", "video_grid_thw")):
        if f"{prompt}.{grids}" in text:
            rows[:, kinds == kind] = np.concatenate(
                [
                    encode(vision, config, part, grid)[1]
                    for part, grid in _by_grid(text[f"{prompt}.{pixels}"], text[f"{prompt}.{grids}"])
                ],
                axis=1,
            )
    return rows


def _by_grid(pixels: np.ndarray, grids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    bounds = np.cumsum([0, *grids.prod(1)])
    return [(pixels[a:b], grid) for a, b, grid in zip(bounds, bounds[1:], grids, strict=False)]
