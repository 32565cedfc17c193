"""Calibration of a decoder layer, or the output layer, on the rows that reach it: GPTQ or SmoothQuant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ReferenceLayer
from qwenvl_edge_export.files.thread_map import in_order, one_thread_an_operator
from qwenvl_edge_export.graphs.roles import Decoder, InputGroup, Tensors, Weight
from qwenvl_edge_export.graphs.stored import TORCH_DTYPES
from qwenvl_edge_export.options import GraphPrecision
from qwenvl_edge_export.quantization.activations import Spool
from qwenvl_edge_export.quantization.gptq import Rounding, relative_losses, squared_losses
from qwenvl_edge_export.quantization.input_groups import quantized_groups, watch
from qwenvl_edge_export.quantization.input_products import InputProducts
from qwenvl_edge_export.quantization.results import Losses
from qwenvl_edge_export.quantization.smoothquant import InputSample, smooth
from qwenvl_edge_export.verification.cases import Case
from qwenvl_edge_export.weight_formats import Blocks, InputScales, Integers, check_finite, join_rows

_ROWS = 2048  # of a weight that a thread rounds at a time
Scales: TypeAlias = list[tuple[str, InputScales | None, dict[str, float]]]


class LayerCalibration:
    """Calibrates decoder layer `index`, whose inputs for `cases` lie in `spool`, and writes what it makes of them."""

    def __init__(
        self, checkpoint: Checkpoint, precision: GraphPrecision, cases: Sequence[Case], spool: Spool, index: int
    ):
        self._checkpoint = checkpoint
        self._precision = precision
        self._cases = cases
        self._spool = spool
        self._index = index
        layer = checkpoint.family.decoder.layers[index]
        self.groups = list(quantized_groups(layer.groups, precision))
        self._scale_dtype = TORCH_DTYPES[precision.dtype]

    def gptq(self) -> tuple[dict[str, Integers], Losses]:
        """Watch what reaches the groups, quantize them, and go on with what the layer then makes of the samples.

        The layer's floats are dropped while its weights are rounded, and read again afterwards.
        """
        found: dict[Weight, Integers] = {}
        losses: Losses = {}
        for group, inputs in self._inputs(self._load({})) if self.groups else ():
            rounding, rows = Rounding(inputs.take()), inputs.rows
            for weight in group.weights:
                found[weight], losses[weight.name] = self._quantize(weight, rounding, rows)
        self._advance(self._load(found))
        return {weight.name: integers for weight, integers in found.items()}, losses

    def smoothquant(self) -> Scales:
        """Watch what reaches the layer's groups on the way to the next layer, then choose their scales."""
        layer = self._load({})
        seen = [InputSample(len(self._cases)) for _ in self.groups]
        with watch(layer, {group: sample.add for group, sample in zip(self.groups, seen, strict=True)}):
            self._advance(layer)
        del layer
        found: Scales = []
        for group, sample in zip(self.groups, seen, strict=True):
            scales, losses = smooth([self._float(weight) for weight in group.weights], sample)
            found += [(weight.name, scales, losses) for weight in group.weights]
        return found

    def _inputs(self, layer: ReferenceLayer) -> Iterator[tuple[InputGroup, InputProducts]]:
        """Give the inputs that reach each group from all samples; each is dropped when the next one is asked for."""
        seen = {group: InputProducts(group.weights[0].shape[1], len(self._cases)) for group in self.groups}
        end = self.groups[-1]

        def last(x: Tensor) -> None:
            seen[end].add(x)
            raise _Enough

        with watch(layer, {group: inputs.add for group, inputs in seen.items()} | {end: last}):
            for case, rows in zip(self._cases, self._spool.read(self._index), strict=True):
                with contextlib.suppress(_Enough):
                    layer(rows, case.prompt)
        del layer
        for group in self.groups:
            yield group, seen.pop(group)

    def _quantize(self, weight: Weight, rounding: Rounding, rows: Tensor) -> tuple[Integers, dict[str, float]]:
        """A weight in integers, and the losses of rounding to nearest and of calibration on some inputs `rows`."""
        blocks = self._precision.format(weight.name)
        assert isinstance(blocks, Blocks)  # groups are in blocks where the decoder is not W8A8
        blocks.check(weight.name, weight.shape)
        given = weight.read(self._checkpoint.tensor)
        size = min(_ROWS, -(-len(given) // 2))  # two threads at least

        def quantized(part: Tensor) -> tuple[Integers, Tensor]:
            values = part.to(torch.float32)
            check_finite(weight.name, values)
            scales = blocks.scales(values)
            nearest = blocks.floats(blocks.integers(values, scales), scales)
            integers, scales = rounding.quantize(values, blocks, self._scale_dtype)
            found = Integers(blocks.pack(integers), scales.to(self._scale_dtype), blocks)
            return found, squared_losses(values, [nearest, found.floats()], rows)

        with one_thread_an_operator():
            parts, losses = zip(*in_order(quantized, torch.split(given, size)), strict=True)
        nearest, calibrated = relative_losses(torch.stack(losses).sum(0))
        return join_rows(parts), {"rtn": nearest, "calibrated": calibrated}

    def _advance(self, layer: ReferenceLayer) -> None:
        """Write what the layer makes of all samples into the next file."""
        with self._spool.written(self._index + 1) as written:
            samples = zip(self._cases, self._spool.read(self._index), written, strict=True)
            for i, (case, rows, out) in enumerate(samples):
                out.copy_(layer(rows, case.prompt))
                self._spool.add_deepstack(i, case.prompt, out, self._index)

    def _load(self, found: Mapping[Weight, Integers]) -> ReferenceLayer:
        """The layer with the weights that are quantized already, and with the checkpoint's where they are not."""
        quantized = {source: (weight, integers) for weight, integers in found.items() for source in weight.sources}

        def read(name: str) -> Tensor:
            if name in quantized:
                weight, integers = quantized[name]
                return self._part(integers.floats(), weight, name)
            values = self._checkpoint.tensor(name).to(torch.float32)
            check_finite(name, values)
            return values

        return self._checkpoint.family.reference_layer(self._index, read)

    def _part(self, values: Tensor, weight: Weight, source: str) -> Tensor:
        """The rows of `values` that came from one of the weight's sources."""
        if len(weight.sources) == 1:
            return values
        sizes = [self._checkpoint.shape(name)[0] for name in weight.sources]
        parts: tuple[Tensor, ...] = torch.split(values, sizes)
        return parts[weight.sources.index(source)].clone()

    def _float(self, weight: Weight) -> Tensor:
        values = weight.read(self._checkpoint.tensor).to(torch.float32)
        check_finite(weight.name, values)
        return values


def head_scales(decoder: Decoder, tensors: Tensors, samples: Iterable[Tensor], count: int) -> Scales:
    """Scales for the inputs of the output layer, from the last layer's rows [T, H] of `count` samples."""
    weight, norm = decoder.head.weight, decoder.final_norm.read(tensors).float()
    seen = InputSample(count)
    for rows in samples:
        seen.add(rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + decoder.norm_eps) * norm)
    return [(weight.name, *smooth([weight.read(tensors)], seen))]


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """The layer in question has its inputs: the rest need not run."""
