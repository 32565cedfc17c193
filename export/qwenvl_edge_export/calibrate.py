"""Calibration layer by layer: one decoder layer's weights in memory, what flows between layers in a file on disk.

Each layer sees what the quantized layers before it make of the samples, and within a layer each group of linear layers
what the quantized groups before it make of them. The integers of a layer are kept when it is done, so an interrupted
calibration goes on behind it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qwenvl_edge_export.checkpoint import Checkpoint
from qwenvl_edge_export.gptq import quantize, relative_loss
from qwenvl_edge_export.graphs.weights import TORCH_DTYPES
from qwenvl_edge_export.modeling import Block, call_context, ntk_alpha
from qwenvl_edge_export.precision import GraphPrecision
from qwenvl_edge_export.prompts import Case
from qwenvl_edge_export.quantize import Blocks, Integers, check_finite
from qwenvl_edge_export.streaming import streamed_model

LayerDone = Callable[[int, int, str], None]

_GROUPS = (("attn.c_attn",), ("attn.c_proj",), ("mlp.w1", "mlp.w2"), ("mlp.c_proj",))


class Calibration:
    """Integers for the decoder's layers, made from `cases` in the working folder `folder`.

    Args:
        checkpoint: the float weights.
        precision: the decoder's.
        cases: prompts with pictures and answers, in the format the model is used with.
        folder: made, or continued if it is of the same checkpoint, precision and cases; `remove` it afterwards.
        on_layer: called with (layers done, layers, what is being done and how long it will still take).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: GraphPrecision,
        cases: Sequence[Case],
        folder: Path,
        on_layer: LayerDone,
    ):
        self.checkpoint = checkpoint
        self.precision = precision
        self.folder = folder
        self._cases = cases
        self._on_layer = on_layer
        self._lengths = [len(case.prompt.ids) + len(case.answer) for case in cases]
        self._scale_dtype = TORCH_DTYPES[precision.dtype]

    @torch.no_grad()
    def run(self) -> None:
        """Quantize every layer that is not done yet."""
        layers = self.checkpoint.config.num_layers
        self._open()
        started, first = time.monotonic(), self._done()
        for i in range(first, layers):
            left = (time.monotonic() - started) / (i - first) * (layers - i) if i > first else None
            note = "" if left is None else f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"
            self._on_layer(i, layers, f"calibrating layer {i + 1} of {layers}{note}")
            self._layer(i)

    def integers(self, name: str) -> Integers | None:
        """The weight `name`, if it was calibrated."""
        path = self._result(int(name.split(".")[2])) if name.startswith("transformer.h.") else None
        if path is None or not path.exists():
            return None
        content = load_file(path)
        if f"{name}.integers" not in content:
            return None
        return Integers(content[f"{name}.integers"], content[f"{name}.scales"], self._blocks(name))

    def losses(self) -> dict[str, dict[str, float]]:
        """For each calibrated weight the relative change of its layer's outputs, rounded to nearest and calibrated."""
        found: dict[str, dict[str, float]] = {}
        for i in range(self._done()):
            found |= json.loads(self._result(i).with_suffix(".json").read_text())
        return found

    def remove(self) -> None:
        """Delete the working folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        """Continue the folder if it is of the same work, else start it anew with the samples' embeddings."""
        key = json.dumps(self._key())
        path = self.folder / "key.json"
        if path.exists() and path.read_text() == key and self._activations(self._done()).exists():
            return
        self.remove()
        self.folder.mkdir(parents=True)
        self._on_layer(0, self.checkpoint.config.num_layers, "encoding the calibration samples")
        model = streamed_model(self.checkpoint)
        out = self._spool(self._activations(0), "w+")
        for case, rows in zip(self._cases, self._rows(out), strict=True):
            ids = torch.from_numpy(np.concatenate([case.prompt.ids, case.answer]))[None]
            features = model.encode_images(torch.from_numpy(case.pixels)) if len(case.pixels) else None
            embeds = model.embed(ids, features)[0]
            check_finite("calibration sample", embeds)
            rows.copy_(embeds)
        path.write_text(key)

    def _key(self) -> dict[str, Any]:
        stats = {path.name: path.stat() for path in self.checkpoint.source_files}
        files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        samples = [[int(case.prompt.ids.sum()), len(case.answer), float(case.pixels.sum())] for case in self._cases]
        return {"files": files, "precision": repr(self.precision), "lengths": self._lengths, "samples": samples}

    def _layer(self, i: int) -> None:
        prefix = f"transformer.h.{i}"
        block = self._load(prefix)
        results: dict[str, Tensor] = {}
        losses = {}
        for group in _GROUPS:
            names = [name for name in group if self.precision.format(f"{prefix}.{name}.weight") is not None]
            if not names:
                continue
            hessian = self._hessian(i, block, names[0])
            for name in names:
                full = f"{prefix}.{name}.weight"
                losses[full] = self._quantize(full, block.get_parameter(f"{name}.weight"), hessian, results)
        self._advance(i, block)
        self._result(i).with_suffix(".json").write_text(json.dumps(losses))
        partial = self._result(i).with_suffix(".partial")
        save_file(results, partial)
        partial.rename(self._result(i))
        self._activations(i).unlink()

    def _quantize(self, name: str, weight: Tensor, hessian: Tensor, results: dict[str, Tensor]) -> dict[str, float]:
        """Quantize `weight` in place and keep its integers; the losses of both ways."""
        blocks = self._blocks(name)
        blocks.check(name, tuple(weight.shape))
        scales = blocks.scales(weight)
        nearest = relative_loss(weight, blocks.floats(blocks.integers(weight, scales), scales), hessian)
        integers, scales = quantize(weight, hessian, blocks, self._scale_dtype)
        rounded = blocks.floats(integers, scales)
        calibrated = relative_loss(weight, rounded, hessian)
        weight.copy_(rounded)
        results |= {f"{name}.integers": integers.contiguous(), f"{name}.scales": scales.contiguous()}
        return {"rtn": nearest, "calibrated": calibrated}

    def _hessian(self, i: int, block: Block, name: str) -> Tensor:
        """X^T X [in, in] of the inputs that linear layer `name` gets from all samples."""
        module = block.get_submodule(name)
        inputs = block.get_parameter(f"{name}.weight").shape[1]
        total = torch.zeros(inputs, inputs)

        def take(_: nn.Module, arguments: tuple[Tensor]) -> None:
            rows = arguments[0].flatten(0, -2)
            total.addmm_(rows.T, rows)
            raise _Enough

        hook = module.register_forward_pre_hook(take)
        for case, rows in zip(self._cases, self._rows(self._spool(self._activations(i), "r")), strict=True):
            with contextlib.suppress(_Enough):
                self._forward(block, case, rows)
        hook.remove()
        return total

    def _advance(self, i: int, block: Block) -> None:
        """What the quantized layer makes of all samples, into the next file."""
        partial = self._activations(i + 1).with_suffix(".partial")
        source, target = self._spool(self._activations(i), "r"), self._spool(partial, "w+")
        for case, rows, out in zip(self._cases, self._rows(source), self._rows(target), strict=True):
            out.copy_(self._forward(block, case, rows))
        target.flush()
        partial.rename(self._activations(i + 1))

    def _forward(self, block: Block, case: Case, rows: Tensor) -> Tensor:
        config = self.checkpoint.config
        alpha = ntk_alpha(len(case.prompt.ids), config.seq_length) if config.use_dynamic_ntk else 1.0
        rope, q_scale, mask = call_context(config, 0, len(rows), alpha)
        return block(rows[None].clone(), rope, q_scale, mask, None)[0][0]  # type: ignore[no-any-return]

    def _load(self, prefix: str) -> Block:
        with torch.device("meta"):
            block = Block(self.checkpoint.config)
        state = {name: self.checkpoint.tensor(f"{prefix}.{name}").float() for name in block.state_dict()}
        for name, tensor in state.items():
            check_finite(f"{prefix}.{name}", tensor)
        block.load_state_dict(state, assign=True)
        return block.requires_grad_(False).eval()

    def _blocks(self, name: str) -> Blocks:
        blocks = self.precision.format(name)
        assert isinstance(blocks, Blocks)  # callers ask for quantized decoder layers only
        return blocks

    def _done(self) -> int:
        layers = range(self.checkpoint.config.num_layers)
        return next((i for i in layers if not self._result(i).exists()), len(layers))

    def _result(self, i: int) -> Path:
        return self.folder / f"layer-{i}.safetensors"

    def _activations(self, i: int) -> Path:
        return self.folder / f"activations-{i}.f32"

    def _spool(self, path: Path, mode: Any) -> np.memmap[Any, np.dtype[np.float32]]:
        return np.memmap(path, np.float32, mode, shape=(sum(self._lengths), self.checkpoint.config.hidden_size))

    def _rows(self, spool: np.memmap[Any, np.dtype[np.float32]]) -> Iterator[Tensor]:
        """Each sample's rows [T, H]."""
        start = 0
        for length in self._lengths:
            rows = spool[start : start + length]
            yield torch.from_numpy(rows if rows.flags.writeable else np.array(rows))
            start += length


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """The layer in question has its inputs: the rest of the block need not run."""
