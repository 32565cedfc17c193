"""Precision of each part of a bundle: the meaning of `qwenvl export --precision` and its companions.

A graph computes in one float type and stores its linear layers in that type or in integers. On the CPU the float type
is float32 (ONNX Runtime computes float16 there through float32 copies, and bfloat16 not at all); on a GPU float16.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwenvl_edge.bundle.contract import NATIVE, ONNXRUNTIME, STANDARD
from qwenvl_edge.bundle.manifest import FLOAT_CACHE, KV_CACHES, Precision
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge_export.weight_formats import BLOCK_SIZES, Blocks, Rows, StaticRows, WeightFormat

FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
STATIC = "w8a8"
PRECISIONS = (*FLOATS, "int8", "int4", STATIC)
VISION_PRECISIONS = (*FLOATS, "int8", STATIC)
TARGETS = ("cpu", "gpu")
_DEFAULTS = {"cpu": "int8", "gpu": "fp16"}
"""Precision of each target that runs on an ordinary machine, for a user who names none."""
_VISION_DEFAULTS = {"cpu": {"int8": "int8", "int4": "int8"}, "gpu": {"int4": "fp16"}}
_BITS = {"int8": 8, "int4": 4}
# On the CPU blocks of 128 take 0.8 of the time of blocks of 32 at a token (docs/decisions/block-size.md).
_BLOCKS = {"cpu": 128, "gpu": 128}
_TENSORRT_BLOCKS = (64, 128)
HEAD_UNIT = 8
"""ONNX Runtime's GroupQueryAttention takes heads whose channels are a multiple of this."""
# TensorRT multiplies no 8-bit blocks (docs/decisions/lm-head.md).
_INT4_HEADS = {"cpu": "int8", "gpu": "fp16"}


@dataclass(frozen=True)
class GraphPrecision:
    """One graph's float type (a key of FLOATS) and how its linear layers are stored.

    weights: the float type, "int8", "int4" or "w8a8" (activations are integers too, with scales from calibration).
    head: the same for the output layer. block: inputs that share a scale.
    activations: beside "int8", activations are integers too, with scales found at run time, and a weight's scales are
    one per output row instead of blocks.
    keep: patterns of layers that stay in the float type. cache: a value of KV_CACHES, for the "standard" dialect.
    grouped: ONNX Runtime's attention takes heads of this width.
    """

    compute: str
    weights: str
    head: str = ""
    block: int = 32
    activations: bool = False
    keep: tuple[str, ...] = ()
    cache: str = FLOAT_CACHE
    grouped: bool = True

    @property
    def dtype(self) -> ir.DataType:
        """The float type."""
        return FLOATS[self.compute]

    @property
    def has_blocks(self) -> bool:
        """True if its linear layers are integers that share scales by blocks of inputs."""
        return self.weights in _BITS and not self.activations

    @property
    def dialects(self) -> tuple[str, ...]:
        """The decoder's dialects at this precision: the native core multiplies float32 by blocks, and nothing else."""
        if not self.grouped:
            return (STANDARD,)
        native = self.compute == "fp32" and self.has_blocks
        return (STANDARD, ONNXRUNTIME, *((NATIVE,) if native else ()))

    def format(self, name: str, *, head: bool = False) -> WeightFormat:
        """Form in which the linear layer with weight `name` is stored; `head`: it is the output layer."""
        chosen = self.head if head else self.weights
        if chosen in FLOATS or any(fnmatch.fnmatch(name, pattern) for pattern in self.keep):
            return None
        if chosen == STATIC:
            return StaticRows()
        return Rows() if self.activations else Blocks(_BITS[chosen], self.block)


FP32 = GraphPrecision("fp32", "fp32", "fp32")


@dataclass(frozen=True)
class ExportPrecision:
    """Precision of both graphs and of the embedding table (a value of NAMES).

    fixed_block: whether the decoder's block size was asked for, so that it must divide the layers' inputs.
    is_default: nobody asked for a precision, so a small model that loses too much in it may take another.
    """

    vision: GraphPrecision
    decoder: GraphPrecision
    embedding: str
    fixed_block: bool = True
    is_default: bool = False

    @classmethod
    def choose(
        cls,
        precision: str | None = None,
        *,
        vision: str | None = None,
        target: str = "cpu",
        block: int | None = None,
        head: str | None = None,
        keep: Sequence[str] = (),
        kv_cache: str = FLOAT_CACHE,
    ) -> ExportPrecision:
        """The precision that the options ask for; None takes the target's default.

        8 bits for a GPU are W8A8, whose scales calibration finds. Blocks are 128 by default, or smaller where `fitted`
        finds that these suit better.

        Raises:
            QwenVLError: an option has no such value, or the target cannot compute it.
        """
        _check("target", target, TARGETS)
        is_default = precision is None and target == "cpu" and not (vision or block or head or keep)
        precision = _DEFAULTS[target] if precision is None else precision
        _check("precision", precision, PRECISIONS)
        if target == "gpu":  # TensorRT multiplies 8-bit weights by 8-bit activations, and by nothing else
            precision = STATIC if precision == "int8" else precision
            vision = STATIC if vision == "int8" else vision
        fixed = block is not None
        block = _BLOCKS[target] if block is None else block
        _check("block size", block, BLOCK_SIZES)
        _check("KV cache", kv_cache, KV_CACHES)
        vision = vision or _VISION_DEFAULTS[target].get(precision, precision)
        _check("vision precision", vision, VISION_PRECISIONS)
        _check_target(target, precision, vision, block)
        # The head's rows decide between neighbouring tokens: more bits where the layers have 4.
        head = head or (_INT4_HEADS[target] if precision == "int4" else precision)
        _check("head precision", head, _heads(precision))
        wide = "fp16" if target == "gpu" else "fp32"
        keep = tuple(keep)
        return cls(
            vision=GraphPrecision(
                vision if vision in FLOATS else wide, vision, block=block, activations=vision == "int8", keep=keep
            ),
            decoder=GraphPrecision(
                precision if precision in FLOATS else wide, precision, head, block, keep=keep, cache=kv_cache
            ),
            embedding=NAMES.get(precision, "float16"),
            fixed_block=fixed,
            is_default=is_default,
        )

    @property
    def has_native_vision(self) -> bool:
        """True if bundles have a vision graph of the native core's operators: 8-bit towers beside a native decoder."""
        return NATIVE in self.decoder.dialects and self.vision.compute == "fp32" and self.vision.activations

    def fitted(self, layers: Mapping[str, tuple[int, ...]]) -> ExportPrecision:
        """The same with the blocks up to the default that divide the inputs of the most weights, the largest of those.

        Layers that these do not divide stay in the float type. A size that was asked for stays: the export then names a
        layer that it does not divide.

        Args:
            layers: shape [out, in] of each of the decoder's weights, by name.
        """
        if self.fixed_block:
            return self

        def divided(size: int) -> int:
            return sum(math.prod(shape) for shape in layers.values() if shape[1] % size == 0)

        block = max(
            (size for size in BLOCK_SIZES if size <= self.decoder.block), key=lambda size: (divided(size), size)
        )
        undivided = [name for name, shape in layers.items() if shape[1] % block] if self.decoder.has_blocks else []
        keep = (*self.decoder.keep, *dict.fromkeys(map(_any_layer, undivided)))
        return dataclasses.replace(self, decoder=dataclasses.replace(self.decoder, block=block, keep=keep))

    def of_heads(self, head_dim: int) -> ExportPrecision:
        """The same for attention heads of `head_dim` channels."""
        grouped = head_dim % HEAD_UNIT == 0
        return dataclasses.replace(self, decoder=dataclasses.replace(self.decoder, grouped=grouped))

    def of_groups(self, group: int) -> ExportPrecision:
        """The same with blocks of `group` inputs in the decoder, those of a quantized checkpoint."""
        return dataclasses.replace(self, decoder=dataclasses.replace(self.decoder, block=group))

    def check_kept(self, names: Sequence[str]) -> None:
        """Check that every pattern of layers to be kept in floats matches one of all weights' `names`.

        Raises:
            QwenVLError: names the first that does not, and the weight's name that is nearest to it.
        """
        for pattern in self.decoder.keep:
            if not any(fnmatch.fnmatch(name, pattern) for name in names):
                nearest = max(names, key=lambda name: difflib.SequenceMatcher(None, name, pattern).ratio())
                raise QwenVLError(
                    f'--keep-fp16 "{pattern}" matches no linear layer\'s weight; they have names such as "{nearest}".'
                )

    def describe(self, method: str) -> Precision:
        """The manifest's record; `method` says where the integers come from."""
        blocks = self.decoder.weights in _BITS
        return Precision(
            vision=self.vision.weights,
            decoder=self.decoder.weights,
            lm_head=self.decoder.head,
            compute={"vision": self.vision.compute, "decoder": self.decoder.compute},
            block_size=self.decoder.block if blocks else 0,
            method="" if self.decoder.weights in FLOATS else method,
            kept=", ".join(self.decoder.keep),
            kv_cache=self.decoder.cache,
        )


def _any_layer(name: str) -> str:
    """The pattern of a weight's name in every layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _heads(precision: str) -> tuple[str, ...]:
    """Precisions of the output layer beside layers of `precision`: floats beside floats, calibrated where they are."""
    if precision in FLOATS:
        return (precision,)
    return PRECISIONS if precision == STATIC else tuple(name for name in PRECISIONS if name != STATIC)


def _check_target(target: str, precision: str, vision: str, block: int) -> None:
    """Refuse what cannot run at the target."""
    if target == "cpu" and "bf16" in (precision, vision):
        raise QwenVLError(
            "nothing here computes bfloat16 on a CPU; choose --precision int8 or fp32, or say --target gpu."
        )
    if target == "gpu" and precision == "int4" and block not in _TENSORRT_BLOCKS:
        raise QwenVLError(f"TensorRT takes 4-bit weights in blocks of 64 or 128, not {block}; leave --block-size out.")


def _check(what: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise QwenVLError(f'the {what} "{value}" is not one of {", ".join(map(str, known))}.')
