"""Calibration layer by layer: one decoder layer's weights in memory, the rows between layers in a file on disk.

Weight-only integers come from GPTQ: each layer sees what the quantized layers before it make of the samples, and all
matrices of a layer see the inputs that its floats give. For W8A8, SmoothQuant finds the scales of every layer's inputs
as the float model has them. The results of a finished layer are kept, so an interrupted calibration continues after it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.sizes import in_words
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.files.path_lock import sole_writer
from qwenvl_edge_export.graphs.roles import Decoder
from qwenvl_edge_export.graphs.stored import TORCH_DTYPES
from qwenvl_edge_export.options import STATIC, ExportPrecision
from qwenvl_edge_export.provenance import exporter_name
from qwenvl_edge_export.quantization.activations import PARTIAL, Spool
from qwenvl_edge_export.quantization.input_groups import quantized_groups
from qwenvl_edge_export.quantization.layer_calibration import LayerCalibration, head_scales
from qwenvl_edge_export.quantization.results import HEAD_STAGE, VISION_STAGE, Kept, Losses, kept_bytes, whole
from qwenvl_edge_export.quantization.sample_embeddings import SampleEmbeddings
from qwenvl_edge_export.verification.cases import Case
from qwenvl_edge_export.weight_formats import InputScales, StaticRows

LayerDone = Callable[[int, int, str], None]

_KEY = {"exporter": "exporter version", "files": "checkpoint", "precision": "precision", "samples": "set of samples"}
"""Names of all that the results depend on, in the working folder's file and in messages."""
_TELL_S = 10  # between messages about samples
_ENCODING = "encoding the calibration samples"  # shorter with remarks: a line has 79 characters


class Calibration:
    """Integers or input scales for the linear layers, made from `cases` in the working folder `folder`.

    Args:
        checkpoint: the float weights.
        precision: of both graphs; the picture side is calibrated where it is W8A8.
        cases: prompts with pictures and answers, in the format the model is used with.
        folder: made, or continued if it is of the same checkpoint, precision and cases; `remove` it afterwards.
            Results of other settings are an error unless `restart` gives them up.
        on_layer: called with (layers done, layers, the step at hand and the time left).
        decoder: whether to calibrate the decoder.
        notes: remarks on the samples, shown while they are encoded.
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
        restart: bool = False,
        notes: Sequence[str] = (),
    ):
        self.checkpoint = checkpoint
        self.precision = precision
        self.folder = folder
        self._cases = cases
        self._restart = restart
        self._notes = notes
        self._on_layer = on_layer
        self._decoder = checkpoint.family.decoder if decoder else None
        self._layers = len(self._decoder.layers) if self._decoder is not None else 0
        self.kept = Kept(folder, self._decoder, precision.decoder)
        lengths = [len(case.prompt.ids) + len(case.answer) for case in cases]
        self._spool = Spool(folder, lengths, checkpoint.family.decoder.hidden_size)

    @torch.no_grad()
    def run(self) -> None:
        """Calibrate everything that is not done yet.

        Raises:
            BundleError: the disk is full, or the working folder cannot be written, holds results of other settings or
                somebody else's files, or another process is at work in it.
            CheckpointError: a tensor holds NaN or infinity.
        """
        try:
            with sole_writer(self.folder.absolute(), "a calibration"):
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
            left = time_left(time.monotonic() - started, i - first, self._layers - first)
            self._on_layer(i, self._layers, f"calibrating layer {i + 1} of {self._layers}{left}")
            self._layer(i)
        if self._decoder is not None and not self.kept.is_done(HEAD_STAGE):
            self._head(self._decoder)

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
        done = self.kept.layers_done()
        if self._is_same() and self._spool.path(done).exists() and self.kept.is_begun():
            self._spool.keep_only(done)
            self._check_space()
            self.kept.go_on()
            return
        self.remove()
        try:
            self.folder.mkdir(parents=True)
            with whole(self._key_path) as partial:
                partial.write_text(json.dumps(self._key(), indent=1))
            self._check_space()
            self.kept.begin()
            self._begin()
        except BaseException:
            self.remove()
            raise

    def _is_same(self) -> bool:
        """Tell if the folder holds work of the same settings; False where it may be made anew.

        Raises:
            BundleError: it is somebody else's, or of other settings.
        """
        try:
            found = json.loads(self._key_path.read_bytes())
        except FileNotFoundError:
            if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - {self._key_path.stem + PARTIAL}:
                raise BundleError(
                    f'"{self.folder}" is where results of the calibration are kept, but it holds something else; move '
                    "it away, or choose another name for the bundle."
                ) from None
            return False
        except ValueError:
            found = {}
        wanted = json.loads(json.dumps(self._key()))
        if found == wanted or self._restart:
            return bool(found == wanted)
        other = " and ".join(words for name, words in _KEY.items() if found.get(name) != wanted[name])
        raise BundleError(
            f'"{self.folder}" holds a calibration of which {self.kept.layers_done()} layers are done, with another '
            f"{other}; finish it with its own settings, choose another name for the bundle, or give it up with "
            "--restart-calibration."
        )

    def _begin(self) -> None:
        """Write the samples' embeddings into the first file, and keep the picture side's scales."""
        samples = SampleEmbeddings(self.checkpoint, self._cases, self.precision.vision)
        self._on_layer(0, self._layers, ", ".join(["encoding", *self._notes] if self._notes else [_ENCODING]))
        begun = told = time.monotonic()

        def on_case(done: int) -> None:
            nonlocal told
            if (now := time.monotonic()) - told >= _TELL_S:
                told = now
                left = time_left(now - begun, done, len(self._cases))
                self._on_layer(0, self._layers, f"encoding sample {done + 1} of {len(self._cases)}{left}")

        with self._spool.written(0) as written:
            samples.write(written, self._spool.keep_deepstack, on_case)
        if self.precision.vision.weights == STATIC:
            self.kept.keep(VISION_STAGE, *_collect(samples.vision_scales()))

    def _check_space(self) -> None:
        """Check the disk's room for the rows into and out of a layer and for the results to come.

        The picture side's scales are a few MB at most and not counted.
        """
        done = self.kept.layers_done()
        files = int(done < self._layers) + int(not self._spool.path(done).exists())
        precision = self.precision.decoder
        needed = files * self._spool.size_bytes + sum(
            kept_bytes(precision.format(weight.name), weight.shape, TORCH_DTYPES[precision.dtype].itemsize)
            for layer in (self._decoder.layers[done:] if self._decoder is not None else ())
            for group in quantized_groups(layer.groups, precision)
            for weight in group.weights
        )
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise BundleError(
                f"calibration takes {in_words(needed)} beside the bundle, but the disk of "
                f'"{self.folder.parent}" has {in_words(free)} free; make room, or give fewer samples.'
            )

    @property
    def _key_path(self) -> Path:
        return self.folder / "key.json"

    def _key(self) -> dict[str, Any]:
        stats = {path.name: path.stat() for path in self.checkpoint.source_files}
        files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        samples = [case.digest() for case in self._cases]
        return dict(zip(_KEY, (exporter_name(), files, repr(self.precision), samples), strict=True))

    def _layer(self, i: int) -> None:
        precision = self.precision.decoder
        layer = LayerCalibration(self.checkpoint, precision, self._cases, self._spool, i)
        if precision.weights == STATIC:
            self.kept.keep(i, *_collect(layer.smoothquant()))
        else:
            self.kept.keep(i, *layer.gptq())
        self._spool.path(i).unlink()

    def _head(self, decoder: Decoder) -> None:
        """Choose the scales of the output layer's inputs, where it is W8A8."""
        if self.precision.decoder.format(decoder.head.weight.name, head=True) != StaticRows():
            return
        self._on_layer(self._layers, self._layers, "calibrating the output layer")
        scales = head_scales(decoder, self.checkpoint.tensor, self._spool.read(self._layers), len(self._cases))
        self.kept.keep(HEAD_STAGE, *_collect(scales))


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


def time_left(seconds: float, done: int, total: int) -> str:
    """The end of a message: what the rest of `total` steps takes if `done` of them took so long; "" at the start."""
    if not 0 < done < total:
        return ""
    left = seconds / done * (total - done)
    return f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"
