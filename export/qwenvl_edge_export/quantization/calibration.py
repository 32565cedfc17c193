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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qwenvl_edge.errors import BundleError, CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint, expected_shapes
from qwenvl_edge_export.families.qwen_vl.config import QwenVLConfig
from qwenvl_edge_export.families.qwen_vl.metadata import exporter_name
from qwenvl_edge_export.families.qwen_vl.reference import Block, QwenVL, RMSNorm, call_context, ntk_alpha
from qwenvl_edge_export.graphs.data_file import TORCH_DTYPES
from qwenvl_edge_export.graphs.decoder import build_decoders
from qwenvl_edge_export.options import HEAD, STATIC, ExportPrecision
from qwenvl_edge_export.quantization.activations import Spool
from qwenvl_edge_export.quantization.formats import Blocks, InputScales, Integers, StaticRows, check_finite
from qwenvl_edge_export.quantization.gptq import quantize, relative_loss
from qwenvl_edge_export.quantization.results import HEAD_STAGE, VISION_STAGE, Kept, Losses, kept_bytes
from qwenvl_edge_export.quantization.smoothquant import InputSample, smooth
from qwenvl_edge_export.quantization.vision_calibration import VisionInputs
from qwenvl_edge_export.verification.cases import Case
from qwenvl_edge_export.verification.streamed_reference import streamed_model

LayerDone = Callable[[int, int, str], None]

_ENCODING = "encoding the calibration samples"  # short where something is to be said of them: a line has 79 characters
_GROUPS = (("attn.c_attn",), ("attn.c_proj",), ("mlp.w1", "mlp.w2"), ("mlp.c_proj",))


def decoder_names(config: QwenVLConfig) -> list[str]:
    """The weights of the decoder's linear layers."""
    layers = (
        f"transformer.h.{i}.{name}.weight" for i in range(config.num_layers) for group in _GROUPS for name in group
    )
    return [*layers, HEAD]


class Calibration:
    """Integers or input scales for the linear layers, made from `cases` in the working folder `folder`.

    Args:
        checkpoint: the float weights.
        precision: of both graphs; the picture side is calibrated where it is W8A8.
        cases: prompts with pictures and answers, in the format the model is used with.
        folder: made, or continued if it is of the same checkpoint, precision and cases; `remove` it afterwards.
        on_layer: called with (layers done, layers, what is being done and how long it will still take).
        decoder: whether to calibrate the decoder.
        notes: what to say of the samples while they are encoded.
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
        notes: Sequence[str] = (),
    ):
        self.checkpoint = checkpoint
        self.precision = precision
        self.folder = folder
        self._cases = cases
        self._notes = notes
        self._on_layer = on_layer
        self._layers = checkpoint.config.num_layers if decoder else 0
        self._lengths = [len(case.prompt.ids) + len(case.answer) for case in cases]
        blocks = self._layers and precision.decoder.weights != STATIC
        plan = build_decoders(checkpoint, precision.decoder)[1] if blocks else None
        self.kept = Kept(folder, self._layers, precision.decoder, plan)
        self._spool = Spool(folder, self._lengths, checkpoint.config.hidden_size)
        self._scale_dtype = TORCH_DTYPES[precision.decoder.dtype]

    @torch.no_grad()
    def run(self) -> None:
        """Calibrate everything that is not done yet.

        Raises:
            BundleError: the disk is full, or the working folder cannot be written.
            CheckpointError: a tensor holds NaN or infinity.
        """
        try:
            self._run()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            kept = (
                "the same command goes on with what is done" if self._key_path.exists() else "nothing was left behind"
            )
            raise BundleError(f'calibration cannot write "{self.folder}": {reason}; {kept}.') from error

    def _run(self) -> None:
        self._open()
        started, first = time.monotonic(), self.kept.layers_done()
        for i in range(first, self._layers):
            left = (time.monotonic() - started) / (i - first) * (self._layers - i) if i > first else None
            note = "" if left is None else f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"
            self._on_layer(i, self._layers, f"calibrating layer {i + 1} of {self._layers}{note}")
            self._layer(i)
        if self._layers and self.precision.decoder.format(HEAD) == StaticRows() and not self.kept.is_done(HEAD_STAGE):
            self._on_layer(self._layers, self._layers, "calibrating the output layer")
            self._head()

    @property
    def method(self) -> str:
        """The name of the decoder's method, for the manifest."""
        if not self._layers:
            return "rtn"
        return "smoothquant" if self.precision.decoder.weights == STATIC else "gptq"

    def remove(self) -> None:
        """Delete the working folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        """Continue the folder if it is of the same work, else start it anew with the samples' embeddings."""
        key, done = json.dumps(self._key()), self.kept.layers_done()
        same = self._key_path.exists() and self._key_path.read_text() == key
        if same and self._spool.path(done).exists() and self.kept.is_begun():
            self._spool.keep_only(done)
            self._check_space()
            self.kept.go_on()
            return
        self.remove()
        try:
            self.folder.mkdir(parents=True)
            self._check_space()
            self.kept.begin()
            self._begin()
            self._key_path.write_text(key)
        except BaseException:
            self.remove()
            raise

    def _begin(self) -> None:
        """The samples' embeddings, into the first file, and the picture side's scales."""
        model = streamed_model(self.checkpoint)
        vision = self._watch(model)
        self._on_layer(0, self._layers, ", ".join(["encoding", *self._notes] if self._notes else [_ENCODING]))
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
            self.kept.keep(VISION_STAGE, *_collect(vision.solve()))

    def _check_space(self) -> None:
        """Ask for room for what flows into and out of a layer and for what is still to be found, before it is begun.

        The picture side's scales are a few MB at most and not counted.
        """
        done = self.kept.layers_done()
        files = int(done < self._layers) + int(not self._spool.path(done).exists())
        needed = files * self._spool.size_bytes + sum(
            kept_bytes(self.precision.decoder.format(name), self.checkpoint.shape(name), self._scale_dtype.itemsize)
            for i in range(done, self._layers)
            for names in self._groups(i)
            for name in names
        )
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise BundleError(
                f"calibration takes {needed / 1e9:,.2f} GB beside the bundle, but the disk of "
                f'"{self.folder.parent}" has {free / 1e9:,.2f} GB free; make room, or give fewer samples.'
            )

    def _blame(self) -> None:
        """Name the tensor that makes the embeddings of a sample NaN or infinite."""
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

    @property
    def _key_path(self) -> Path:
        return self.folder / "key.json"

    def _key(self) -> dict[str, Any]:
        stats = {path.name: path.stat() for path in self.checkpoint.source_files}
        files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        samples = [case.digest() for case in self._cases]
        return {"exporter": exporter_name(), "files": files, "precision": repr(self.precision), "samples": samples}

    def _layer(self, i: int) -> None:
        found, losses = (self._smooth if self.precision.decoder.weights == STATIC else self._gptq)(i)
        self.kept.keep(i, found, losses)
        self._spool.path(i).unlink()

    def _gptq(self, i: int) -> tuple[dict[str, Integers], Losses]:
        """Quantize the layer, group by group, and go on with what it makes of the samples then.

        The layer's floats are dropped while a group's H is at work, and read again behind it.
        """
        found: dict[str, Integers] = {}
        losses: Losses = {}
        for names in self._groups(i):
            hessian = self._hessian(i, self._load(i, found), names[0])
            for name in names:
                found[name], losses[name] = self._quantize(name, hessian)
            del hessian
        self._advance(i, self._load(i, found))
        return found, losses

    def _smooth(self, i: int) -> tuple[dict[str, InputScales], Losses]:
        """Watch what reaches the layer's groups on the way to the next layer, then choose their scales."""
        block, groups = self._load(i, {}), list(self._groups(i))
        seen = [InputSample(len(self._cases)) for _ in groups]
        hooks = [_watch(self._module(block, names[0]), sample) for names, sample in zip(groups, seen, strict=True)]
        self._advance(i, block)
        for hook in hooks:
            hook.remove()
        found = []
        for names, sample in zip(groups, seen, strict=True):
            scales, losses = smooth([self._module(block, name).weight for name in names], sample)
            found += [(name, scales, losses) for name in names]
        return _collect(found)

    def _head(self) -> None:
        norm = RMSNorm(self.checkpoint.config.hidden_size, self.checkpoint.config.norm_eps)
        norm.load_state_dict({"weight": self.checkpoint.tensor("transformer.ln_f.weight").float()})
        seen = InputSample(len(self._cases))
        for rows in self._spool.read(self._layers):
            seen.add(norm(rows))
        self.kept.keep(HEAD_STAGE, *_collect([(HEAD, *smooth([self.checkpoint.tensor(HEAD)], seen))]))

    def _groups(self, i: int) -> Iterator[list[str]]:
        """The weights of each group of the layer's linear layers that share their inputs and are quantized."""
        for group in _GROUPS:
            names = [f"transformer.h.{i}.{name}.weight" for name in group]
            if names := [name for name in names if self.precision.decoder.format(name) is not None]:
                yield names

    def _quantize(self, name: str, hessian: Tensor) -> tuple[Integers, dict[str, float]]:
        """The weight `name` in integers, and the losses of both ways."""
        blocks = self.precision.decoder.format(name)
        assert isinstance(blocks, Blocks)  # groups are in blocks where the decoder is not W8A8
        weight = self._weight(name)
        blocks.check(name, tuple(weight.shape))
        scales = blocks.scales(weight)
        nearest = relative_loss(weight, blocks.floats(blocks.integers(weight, scales), scales), hessian)
        integers, scales = quantize(weight, hessian, blocks, self._scale_dtype)
        found = Integers(blocks.pack(integers), scales.to(self._scale_dtype), blocks)
        return found, {"rtn": nearest, "calibrated": relative_loss(weight, found.floats(), hessian)}

    def _hessian(self, i: int, block: Block, name: str) -> Tensor:
        """X^T X [in, in] of the inputs that the linear layer with weight `name` gets from all samples."""
        module = self._module(block, name)
        total = torch.zeros(module.in_features, module.in_features)

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

    def _load(self, i: int, found: Mapping[str, Integers]) -> Block:
        """Layer `i` with the weights that are quantized already, and with the checkpoint's where they are not."""
        with torch.device("meta"):
            block = Block(self.checkpoint.config)
        names = {name: f"transformer.h.{i}.{name}" for name in block.state_dict()}
        state = {name: found[full].floats() if full in found else self._weight(full) for name, full in names.items()}
        block.load_state_dict(state, assign=True)
        return block.requires_grad_(False).eval()

    def _weight(self, name: str) -> Tensor:
        weight = self.checkpoint.tensor(name).to(torch.float32)
        check_finite(name, weight)
        return weight

    @staticmethod
    def _module(block: Block, name: str) -> nn.Linear:
        """The linear layer of `block` whose weight is `name`."""
        module = block.get_submodule(name.split(".", 3)[3].removesuffix(".weight"))
        assert isinstance(module, nn.Linear)
        return module


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """The layer in question has its inputs: the rest of the block need not run."""


def _watch(module: nn.Module, sample: InputSample) -> RemovableHandle:
    """Add everything that reaches `module` to `sample`."""
    return module.register_forward_pre_hook(lambda _, arguments: sample.add(arguments[0]))


def _collect(
    found: Iterable[tuple[str, InputScales | None, dict[str, float]]],
) -> tuple[dict[str, InputScales], Losses]:
    """Input scales by the names of their weights, where there are some, and the losses."""
    scales: dict[str, InputScales] = {}
    losses: Losses = {}
    for name, given, losses[name] in found:
        if given is not None:
            scales[name] = given
    return scales, losses
