"""Calibration layer by layer: one decoder layer's weights in memory, what flows between layers in a file on disk.

Weight-only integers come from GPTQ: each layer sees what the quantized layers before it make of the samples, and within
a layer each group of linear layers what the quantized groups before it make of them. For W8A8, SmoothQuant finds the
scales of every layer's inputs as the float model has them. What a layer yields is kept when it is done, so an
interrupted calibration goes on behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qwenvl_edge.errors import BundleError, CheckpointError, QwenVLError
from qwenvl_edge_export.calibrate_vision import VisionInputs
from qwenvl_edge_export.checkpoint import Checkpoint, expected_shapes
from qwenvl_edge_export.gptq import quantize, relative_loss
from qwenvl_edge_export.graphs.weights import TORCH_DTYPES
from qwenvl_edge_export.metadata import exporter_name
from qwenvl_edge_export.modeling import Block, QwenVL, RMSNorm, call_context, ntk_alpha
from qwenvl_edge_export.precision import HEAD, STATIC, ExportPrecision
from qwenvl_edge_export.prompts import Case
from qwenvl_edge_export.quantize import Blocks, InputScales, Integers, StaticRows, check_finite
from qwenvl_edge_export.smooth import InputSample, smooth
from qwenvl_edge_export.spool import Spool
from qwenvl_edge_export.streaming import streamed_model

LayerDone = Callable[[int, int, str], None]
Losses = dict[str, dict[str, float]]

_GROUPS = (("attn.c_attn",), ("attn.c_proj",), ("mlp.w1", "mlp.w2"), ("mlp.c_proj",))
_VISION_RESULT, _HEAD_RESULT = "vision", "head"


class Calibration:
    """Integers or input scales for the linear layers, made from `cases` in the working folder `folder`.

    Args:
        checkpoint: the float weights.
        precision: of both graphs; the picture side is calibrated where it is W8A8.
        cases: prompts with pictures and answers, in the format the model is used with.
        folder: made, or continued if it is of the same checkpoint, precision and cases; `remove` it afterwards.
        on_layer: called with (layers done, layers, what is being done and how long it will still take).
        decoder: whether to calibrate the decoder.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: ExportPrecision,
        cases: Sequence[Case],
        folder: Path,
        on_layer: LayerDone,
        *,
        decoder: bool = True,
    ):
        self.checkpoint = checkpoint
        self.precision = precision
        self.folder = folder
        self._cases = cases
        self._on_layer = on_layer
        self._layers = checkpoint.config.num_layers if decoder else 0
        self._lengths = [len(case.prompt.ids) + len(case.answer) for case in cases]
        self._spool = Spool(folder, self._lengths, checkpoint.config.hidden_size)
        self._scale_dtype = TORCH_DTYPES[precision.decoder.dtype]

    @torch.no_grad()
    def run(self) -> None:
        """Calibrate everything that is not done yet."""
        self._open()
        started, first = time.monotonic(), self._done()
        for i in range(first, self._layers):
            left = (time.monotonic() - started) / (i - first) * (self._layers - i) if i > first else None
            note = "" if left is None else f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"
            self._on_layer(i, self._layers, f"calibrating layer {i + 1} of {self._layers}{note}")
            self._layer(i)
        if (
            self._layers
            and self.precision.decoder.format(HEAD) == StaticRows()
            and not self._result(_HEAD_RESULT).exists()
        ):
            self._on_layer(self._layers, self._layers, "calibrating the output layer")
            self._head()

    @property
    def method(self) -> str:
        """The name of the decoder's method, for the manifest."""
        if not self._layers:
            return "rtn"
        return "smoothquant" if self.precision.decoder.weights == STATIC else "gptq"

    def given(self, name: str) -> Integers | InputScales | None:
        """What was found for the weight `name`, if it was calibrated."""
        path = self._result(self._stage(name))
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as content:
            known = set(content.keys())
            if f"{name}.factors" in known:
                return InputScales(content.get_tensor(f"{name}.factors"), float(content.get_tensor(f"{name}.scale")))
            if f"{name}.integers" not in known:
                return None
            integers, scales = (content.get_tensor(f"{name}.{part}") for part in ("integers", "scales"))
            return Integers(integers, scales, self._blocks(name))

    def losses(self) -> Losses:
        """For each calibrated weight the relative change of its layer's outputs, plainly rounded and calibrated."""
        found: Losses = {}
        for stage in (_VISION_RESULT, *range(self._layers), _HEAD_RESULT):
            path = self._result(stage).with_suffix(".json")
            found |= json.loads(path.read_text()) if path.exists() else {}
        return found

    def remove(self) -> None:
        """Delete the working folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        """Continue the folder if it is of the same work, else start it anew with the samples' embeddings."""
        key = json.dumps(self._key())
        path = self.folder / "key.json"
        if path.exists() and path.read_text() == key and self._spool.path(self._done()).exists():
            return
        model = streamed_model(self.checkpoint)
        vision = self._watch(model)
        self.remove()
        self.folder.mkdir(parents=True)
        self._check_space()
        self._on_layer(0, self._layers, "encoding the calibration samples")
        features: dict[bytes, Tensor] = {}
        with self._spool.written(0) as written:
            for case, rows in zip(self._cases, written, strict=True):
                pictures = [self._features(model, pixels, features) for pixels in case.pixels]
                ids = torch.from_numpy(np.concatenate([case.prompt.ids, case.answer]))[None]
                embeds = model.embed(ids, torch.stack(pictures) if pictures else None)[0]
                if not torch.isfinite(embeds).all():
                    self._blame()
                rows.copy_(embeds)
        if vision is not None:
            self._keep(_VISION_RESULT, *_collect(vision.solve()))
        path.write_text(key)

    def _check_space(self) -> None:
        """Ask for room for what flows into and out of a layer, before a mapped file meets the disk's end."""
        needed, free = 2 * self._spool.size_bytes, shutil.disk_usage(self.folder).free
        if free < needed:
            self.remove()
            raise BundleError(
                f"calibration takes {needed / 1e9:,.2f} GB beside the bundle, but the disk of "
                f'"{self.folder.parent}" has {free / 1e9:,.2f} GB free; make room, or give fewer samples.'
            )

    def _blame(self) -> None:
        """Name the tensor that makes the embeddings of a sample NaN or infinite."""
        self.remove()
        for name in expected_shapes(self.checkpoint.config):
            if name.startswith("transformer.visual.") or name == "transformer.wte.weight":
                check_finite(name, self.checkpoint.tensor(name))
        raise CheckpointError(
            "the picture side yields NaN or infinity on a calibration sample; its weights are broken."
        )

    def _watch(self, model: QwenVL) -> VisionInputs | None:
        """Take note of the picture side's inputs, where its layers need scales for them."""
        if self.precision.vision.weights != STATIC:
            return None
        pictures = {hashlib.sha256(pixels.data).digest() for case in self._cases for pixels in case.pixels}
        if not pictures:
            raise QwenVLError(
                f"none of the calibration samples has a picture, but --vision-precision {STATIC} needs some."
            )
        return VisionInputs(self.checkpoint, model, self.precision.vision, len(pictures))

    def _features(self, model: QwenVL, pixels: npt.NDArray[np.float32], known: dict[bytes, Tensor]) -> Tensor:
        """Image features [Q, H] of one picture; the built-in ones are asked about several times."""
        digest = hashlib.sha256(pixels.data).digest()
        if digest not in known:
            known[digest] = model.encode_images(torch.from_numpy(pixels)[None])[0]
        return known[digest]

    def _key(self) -> dict[str, Any]:
        stats = {path.name: path.stat() for path in self.checkpoint.source_files}
        files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        samples = [case.digest() for case in self._cases]
        return {"exporter": exporter_name(), "files": files, "precision": repr(self.precision), "samples": samples}

    def _layer(self, i: int) -> None:
        block = self._load(f"transformer.h.{i}")
        results, losses = (self._smooth if self.precision.decoder.weights == STATIC else self._gptq)(i, block)
        self._keep(i, results, losses)
        self._spool.path(i).unlink()

    def _gptq(self, i: int, block: Block) -> tuple[dict[str, Tensor], Losses]:
        """Quantize the layer in place, group by group, and go on with what it makes of the samples then."""
        results: dict[str, Tensor] = {}
        losses = {}
        for prefix, names in self._groups(i):
            hessian = self._hessian(i, block, names[0])
            for name in names:
                full = f"{prefix}.{name}.weight"
                losses[full] = self._quantize(full, block.get_parameter(f"{name}.weight"), hessian, results)
        self._advance(i, block)
        return results, losses

    def _smooth(self, i: int, block: Block) -> tuple[dict[str, Tensor], Losses]:
        """Watch what reaches the layer's groups on the way to the next layer, then choose their scales."""
        groups = list(self._groups(i))
        seen = [InputSample(len(self._cases)) for _ in groups]
        hooks = [_watch(block.get_submodule(names[0]), sample) for (_, names), sample in zip(groups, seen, strict=True)]
        self._advance(i, block)
        for hook in hooks:
            hook.remove()
        found = []
        for (prefix, names), sample in zip(groups, seen, strict=True):
            scales, losses = smooth([block.get_parameter(f"{name}.weight") for name in names], sample)
            found += [(f"{prefix}.{name}.weight", scales, losses) for name in names]
        return _collect(found)

    def _head(self) -> None:
        norm = RMSNorm(self.checkpoint.config.hidden_size, self.checkpoint.config.norm_eps)
        norm.load_state_dict({"weight": self.checkpoint.tensor("transformer.ln_f.weight").float()})
        seen = InputSample(len(self._cases))
        for rows in self._spool.read(self._layers):
            seen.add(norm(rows))
        self._keep(_HEAD_RESULT, *_collect([(HEAD, *smooth([self.checkpoint.tensor(HEAD)], seen))]))

    def _groups(self, i: int) -> Iterator[tuple[str, list[str]]]:
        """The layer's prefix with each group of its linear layers that share their inputs and are quantized."""
        prefix = f"transformer.h.{i}"
        for group in _GROUPS:
            names = [name for name in group if self.precision.decoder.format(f"{prefix}.{name}.weight") is not None]
            if names:
                yield prefix, names

    def _keep(self, stage: int | str, results: dict[str, Tensor], losses: Losses) -> None:
        """Keep what a stage found; it counts as done when the last file is there."""
        self._result(stage).with_suffix(".json").write_text(json.dumps(losses))
        partial = self._result(stage).with_suffix(".partial")
        save_file(results, partial)
        partial.rename(self._result(stage))

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
        for case, rows in zip(self._cases, self._spool.read(i), strict=True):
            with contextlib.suppress(_Enough):
                self._forward(block, case, rows)
        hook.remove()
        return total

    def _advance(self, i: int, block: Block) -> None:
        """What the layer makes of all samples, into the next file."""
        with self._spool.written(i + 1) as written:
            for case, rows, out in zip(self._cases, self._spool.read(i), written, strict=True):
                out.copy_(self._forward(block, case, rows))

    def _forward(self, block: Block, case: Case, rows: Tensor) -> Tensor:
        config = self.checkpoint.config
        alpha = ntk_alpha(len(case.prompt.ids), config.seq_length) if config.use_dynamic_ntk else 1.0
        rope, q_scale, mask = call_context(config, 0, len(rows), alpha)
        return block(rows[None], rope, q_scale, mask, None)[0][0]  # type: ignore[no-any-return]

    def _load(self, prefix: str) -> Block:
        with torch.device("meta"):
            block = Block(self.checkpoint.config)
        state = {name: self.checkpoint.tensor(f"{prefix}.{name}").float() for name in block.state_dict()}
        for name, tensor in state.items():
            check_finite(f"{prefix}.{name}", tensor)
        block.load_state_dict(state, assign=True)
        return block.requires_grad_(False).eval()

    def _blocks(self, name: str) -> Blocks:
        blocks = self.precision.decoder.format(name)
        assert isinstance(blocks, Blocks)  # callers ask for layers in blocks only
        return blocks

    def _done(self) -> int:
        """How many decoder layers are calibrated."""
        return next((i for i in range(self._layers) if not self._result(i).exists()), self._layers)

    def _stage(self, name: str) -> int | str:
        """Where the weight `name` is calibrated: the number of its decoder layer, or another stage."""
        if name == HEAD:
            return _HEAD_RESULT
        return int(name.split(".")[2]) if name.startswith("transformer.h.") else _VISION_RESULT

    def _result(self, stage: int | str) -> Path:
        return self.folder / f"{f'layer-{stage}' if isinstance(stage, int) else stage}.safetensors"


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """The layer in question has its inputs: the rest of the block need not run."""


def _watch(module: nn.Module, sample: InputSample) -> RemovableHandle:
    """Add everything that reaches `module` to `sample`."""
    return module.register_forward_pre_hook(lambda _, arguments: sample.add(arguments[0]))


def _collect(found: Iterable[tuple[str, InputScales | None, dict[str, float]]]) -> tuple[dict[str, Tensor], Losses]:
    """Input scales by the names of their weights, as tensors to be kept, and the losses."""
    results: dict[str, Tensor] = {}
    losses: Losses = {}
    for name, given, loss in found:
        if given is not None:
            results |= {f"{name}.factors": given.factors.clone(), f"{name}.scale": torch.tensor(given.scale)}
        losses[name] = loss
    return results, losses
