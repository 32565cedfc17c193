"""A model of a preset's size with random weights made on the device: its bundles, and PyTorch on the same weights.

Checkpoints have the published layout's names and shapes (tools/synthetic_checkpoint.py), but lie in no file: a tensor
is drawn on the device when it is asked for, from a seed of its name, so that every process sees the same weights.
Bundles are written by the exporter, which rounds and packs where the tensors lie.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from gpu_device import CUDA
from scaled import Eager
from torch import Tensor

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.bundle_writer import write_bundle
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.checkpoint.shards import Stored
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.reference import Block, QwenVLNetwork, call_context, rotary_tables, rotate
from qwenvl_edge_export.options import ExportPrecision
from tools.synthetic_checkpoint import GENERATION, scaled, write_settings

FloatArray = npt.NDArray[np.float32]


class RandomShard:
    """Tensors that are drawn when they are asked for (checkpoint.shards.Shard)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: str):
        self._shapes = shapes
        self._device = device

    def names(self) -> list[str]:
        """See Shard."""
        return list(self._shapes)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """See Shard."""
        return self._shapes[name], torch.bfloat16

    def tensor(self, name: str) -> Tensor:
        """See Shard."""
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        return scaled(name, torch.randn(self._shapes[name], generator=generator, device=self._device))


def random_checkpoint(folder: Path, preset: str, device: str) -> Checkpoint:
    """The checkpoint of a preset; the new folder `folder` holds everything but the weights."""
    family = write_settings(folder, preset)
    shard = RandomShard(family.tensors, device)
    return Checkpoint(folder, family, GENERATION, (), (), {name: Stored(shard, name) for name in family.tensors})


def make_bundle(checkpoint: Checkpoint, folder: Path, precision: str) -> Bundle:
    """The bundle for a GPU in the new folder `folder`."""
    folder.mkdir()
    shapes = {weight.name: weight.shape for weight in checkpoint.family.decoder.linear_weights()}
    write_bundle(checkpoint, folder, ExportPrecision.choose(precision, target="gpu").fitted(shapes))
    return Bundle.open(folder)


def vision_flops(config: QwenVLConfig) -> float:
    """Operations of one picture: products of matrices only, a multiplication and an addition each."""
    vision = config.vision
    patches, queries, width, dim = vision.grid**2, vision.n_queries, vision.width, vision.output_dim
    block = 2 * patches * (4 * width**2 + 2 * width * vision.mlp_width) + 4 * patches**2 * width
    patchify = 2 * patches * 3 * vision.patch_size**2 * width
    resampler = 2 * patches * (width * dim + 2 * dim**2) + 4 * queries * patches * dim + 2 * queries * dim**2
    return float(vision.layers * block + patchify + resampler + 2 * queries * dim**2)


class Graphed:
    """A function of one tensor [shape] on the device, captured as a CUDA graph; on the CPU it is just called."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: str):
        self._function = function
        self._input = torch.zeros(shape, dtype=dtype, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device == CUDA:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):  # what is compiled or allocated at the first calls must not be captured
                    function(self._input)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = function(self._input)

    def __call__(self, value: FloatArray) -> FloatArray:
        """From the host to the host."""
        self._input.copy_(torch.from_numpy(value))
        if self._graph is None:
            output = self._function(self._input)
        else:
            self._graph.replay()
            output = self._output
        result: FloatArray = output.float().cpu().numpy()
        return result


class Compiled(Eager):
    """PyTorch with a cache of fixed size, torch.compile for each kind of layer and a CUDA graph for each stage.

    Layers are compiled, not the whole model: the same kernels, a hundredth of the time (PyTorch's regional
    compilation). On the CPU nothing is compiled, so that a dry run stays short.
    """

    @torch.inference_mode()
    def __init__(self, model: QwenVLNetwork, device: str, *, prompt: int, capacity: int):
        super().__init__(model, device)
        config = model.config
        self._layer = _layer
        if device == CUDA:
            self._layer = torch.compile(_layer, fullgraph=True, dynamic=False)
            for block in (*model.transformer.h, *model.transformer.visual.transformer["resblocks"]):
                block.compile(fullgraph=True, dynamic=False)
        with torch.device(device):
            shape = (config.num_layers, 2, 1, config.num_heads, capacity, config.head_dim)
            self._caches = torch.zeros(shape, dtype=self.dtype)
            self._places = torch.arange(capacity)
            self._tables = rotary_tables(self._places, config, 1.0)
            self._q_scale = call_context(config, self._places, 1.0)[1].to(self.dtype)
            self._at = torch.full((1,), prompt)
        self._weights = [_layer_weights(block) for block in model.transformer.h]
        side, hidden = config.vision.image_size, config.hidden_size
        self._vision = Graphed(model.encode_images, (1, 3, side, side), self.dtype, device)
        self._prompt = Graphed(self._prefill_step, (1, prompt, hidden), self.dtype, device)
        self._step = Graphed(self._decode_step, (1, 1, hidden), self.dtype, device)
        self._length = 0

    @torch.inference_mode()
    def vision(self, pixels: FloatArray) -> FloatArray:
        """See Subject."""
        return self._vision(pixels)

    @torch.inference_mode()
    def prefill(self, embeds: FloatArray) -> FloatArray:
        """See Subject."""
        self._length = embeds.shape[1]
        return self._prompt(embeds)

    @torch.inference_mode()
    def decode(self, embed: FloatArray) -> FloatArray:
        """See Subject."""
        self._at.fill_(self._length)
        self._length += 1
        return self._step(embed)

    def _prefill_step(self, embeds: Tensor) -> Tensor:
        with torch.device(self.device):
            logits, cache = self.model.decode(embeds, last=1)
        for i, pair in enumerate(cache):
            for part, values in zip(self._caches[i], pair, strict=True):
                part[:, :, : values.shape[2]] = values
        return logits

    def _decode_step(self, x: Tensor) -> Tensor:
        cos, sin = (table.index_select(0, self._at) for table in self._tables)
        q_scale, mask = self._q_scale.index_select(0, self._at), self._places <= self._at
        for weights, cache in zip(self._weights, self._caches, strict=True):
            x = self._layer(x, weights, (cos, sin), q_scale, mask, self._at, cache, self.model.config.norm_eps)
        return self.model.lm_head(self.model.transformer.ln_f(x))


def _layer_weights(block: Block) -> tuple[Tensor, ...]:
    attention, mlp = block.attn, block.mlp
    linear = (attention.c_attn.weight, attention.c_attn.bias, attention.c_proj.weight)
    return (block.ln_1.weight, *linear, block.ln_2.weight, mlp.w1.weight, mlp.w2.weight, mlp.c_proj.weight)


def _layer(
    x: Tensor,
    weights: tuple[Tensor, ...],
    rope: tuple[Tensor, Tensor],
    q_scale: Tensor,
    mask: Tensor,
    at: Tensor,
    cache: Tensor,
    eps: float,
) -> Tensor:
    """modeling.Block for one token [1, 1, H], its keys and values written into cache [2, 1, heads, C, D] at `at`."""
    ln_1, qkv, bias, out, ln_2, w1, w2, down = weights
    q, k, v = (
        y.unflatten(-1, (cache.shape[2], -1)).transpose(1, 2)
        for y in F.linear(_norm(x, ln_1, eps), qkv, bias).chunk(3, dim=-1)
    )
    q, k = rotate(q, *rope) * q_scale, rotate(k, *rope)
    keys, values = cache[0].index_copy_(2, at, k), cache[1].index_copy_(2, at, v)
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[None, None, None])
    x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
    y = _norm(x, ln_2, eps)
    return x + F.linear(F.linear(y, w1) * F.silu(F.linear(y, w2)), down)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
