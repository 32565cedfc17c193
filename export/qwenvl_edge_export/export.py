"""Checkpoint to bundle: streamed, so that memory does not follow the model's size, and whole or not there at all."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    DECODER_GRAPHS,
    EMBEDDING_FILE,
    ONNXRUNTIME,
    STANDARD,
    VISION_GRAPH,
    VISION_ORT_GRAPH,
)
from qwenvl_edge.bundle.embedding import embedding_bytes
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.bundle.manifest import (
    FORMAT,
    INT8_CACHE,
    MANIFEST_NAME,
    EmbeddingInfo,
    Graphs,
    Manifest,
    Provenance,
)
from qwenvl_edge.errors import BundleError, QwenVLError
from qwenvl_edge_export.checkpoint.importing import plan_import
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.files.atomic_folder import clean_up, staged_folder
from qwenvl_edge_export.files.path_lock import sole_writer
from qwenvl_edge_export.files.thread_map import one_thread_an_operator
from qwenvl_edge_export.graphs.data_file import DataFile, HashingWriter
from qwenvl_edge_export.graphs.decoder import build_decoder
from qwenvl_edge_export.graphs.stored import GivenIntegers, float_pieces, no_integers
from qwenvl_edge_export.graphs.weight_layout import WeightLayout, decoder_layout, vision_layout
from qwenvl_edge_export.options import FLOATS, STATIC, ExportPrecision
from qwenvl_edge_export.provenance import exporter_name, tool_versions
from qwenvl_edge_export.quantization.calibration import Calibration
from qwenvl_edge_export.quantization.results import Kept
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.cases import source_case_builder
from qwenvl_edge_export.verification.stages import silent
from qwenvl_edge_export.verification.verify import compare
from qwenvl_edge_export.weight_formats import no_scales

Progress = Callable[[int, int, str], None]


_SMALL_BYTES = 1 << 30
"""Weights as float32 of a model that takes them where nobody asked for a precision and 8 bits lose too much."""
_FLOATS_INSTEAD = (
    "8-bit weights change this small model's answers beyond their limits, so its bundle has float32; "
    "--precision int8 --allow-loss would keep 8 bits."
)


def export(
    checkpoint_path: str | Path,
    bundle_path: str | Path,
    *,
    precision: ExportPrecision | None = None,
    force: bool = False,
    allow_loss: bool = False,
    check: bool = True,
    calibration: Path | bool = False,
    restart_calibration: bool = False,
    wait: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    progress: Progress | None = None,
    revision: str | None = None,
    chat_format: str | None = None,
    note: Callable[[str], None] | None = None,
) -> Bundle:
    """Export the checkpoint in folder `checkpoint_path` to a new bundle at `bundle_path`.

    Args:
        checkpoint_path: a checkpoint in the published layout, or the name "org/name" of a model of the Hugging Face
            Hub, which is fetched.
        bundle_path: the folder to write; it appears when it is whole.
        precision: of the weights; None takes 8-bit blocks, which run on an ordinary CPU. A model of at most 1 GiB as
            float32 whose answers 8 bits change beyond their limits takes float32 then.
        force: replace the bundle at `bundle_path`; the old one goes when the new one is whole.
        allow_loss: keep a bundle that differs from its checkpoint by more than its precision allows.
        check: compare the bundle with PyTorch when it is written.
        calibration: quantize the decoder on samples of its use: True for built-in ones, or a folder of pictures, or a
            JSONL file (quantization/samples.py). W8A8 is always calibrated, on built-in ones if this is False. The
            results of an interrupted calibration lie beside `bundle_path`, and it is continued.
        restart_calibration: give up the results of an interrupted calibration that had other settings; without it, such
            a one is an error.
        wait: wait for another process that writes the same bundle; without it that is an error.
        min_pixels, max_pixels: limits of a picture in families whose pictures keep their shape; None takes the
            checkpoint's, but at most 1,280 tokens.
        progress: called with (bytes done, bytes in total, the step at hand).
        revision: of the Hub's model.
        chat_format: "chatml" or "raw" in place of generation_config.json's, for a chat model fine-tuned from a base.
        note: called with sentences about what the bundle does not have as the checkpoint's owner may expect.

    Returns:
        The bundle, opened.

    Raises:
        CheckpointError: the checkpoint is not whole, or does not fit its configuration.
        QwenVLError: a pattern of layers to be kept matches none; or there is nothing to calibrate, or not on these
            samples.
        BundleError: `bundle_path` exists and `force` is not set or it is no bundle; another process is at work on it;
            it cannot be written (disk full, no permission); or the graphs do not compute what the checkpoint computes,
            within their precision's limits.
    """
    target = Path(bundle_path).absolute()
    _check_target(target, force)
    checkpoint = Checkpoint.open(checkpoint_path, revision=revision, chat_format=chat_format)
    if min_pixels is not None or max_pixels is not None:
        checkpoint = dataclasses.replace(checkpoint, family=checkpoint.family.limited(min_pixels, max_pixels))
    family = checkpoint.family
    family.check_tokenizer(checkpoint.path)
    family.generation_defaults(checkpoint.generation)  # a fault shows before hours of work
    shapes = {weight.name: weight.shape for weight in family.decoder.linear_weights()}
    precision = (precision or ExportPrecision.choose()).fitted(shapes)
    precision.check_kept(list(family.linear_names()))
    imported = plan_import(checkpoint, precision)
    precision = imported.precision
    for sentence in (*checkpoint.notes, *imported.notes(calibrated=bool(calibration))):
        if note is not None:
            note(sentence)
    with sole_writer(target, "an export", wait=wait, progress=progress):
        clean_up(target)
        _check_target(target, force)
        calibrated = _calibrate(checkpoint, precision, calibration, target, progress, restart_calibration)
        try:
            _write_checked(checkpoint, target, precision, calibrated, force, check, allow_loss, progress)
        except _LossError:
            if not precision.is_default or calibrated is not None or _float_bytes(family) > _SMALL_BYTES:
                raise
            if note is not None:
                note(_FLOATS_INSTEAD)
            floats = ExportPrecision.choose("fp32")
            _write_checked(checkpoint, target, floats, None, force, check, allow_loss, progress)
        if calibrated is not None:
            calibrated.remove()
    return Bundle.open(target)


class _LossError(BundleError):
    """A bundle that differs from its checkpoint by more than its precision allows."""


def _write_checked(
    checkpoint: Checkpoint,
    target: Path,
    precision: ExportPrecision,
    calibrated: Calibration | None,
    force: bool,
    check: bool,
    allow_loss: bool,
    progress: Progress | None,
) -> None:
    """Write the bundle at `target`, compared with its checkpoint if `check`; whole or not at all."""
    with staged_folder(target, replace=force) as folder:
        write_bundle(checkpoint, folder, precision, calibrated, progress)
        if check:
            _record_parity(folder, checkpoint, allow_loss, calibrated is not None, progress)


def _float_bytes(family: ExportFamily) -> int:
    """Bytes of all weights as float32."""
    return 4 * sum(math.prod(shape) for shape in family.tensors.values())


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    precision: ExportPrecision,
    calibrated: Calibration | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the bundle of `checkpoint` into the empty folder `folder`, uncompared; `export` does the rest.

    Weights are rounded and packed on the device that the checkpoint's tensors lie on. Returns the bytes that `progress`
    counts.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or values too large for its type.
        BundleError: the disk is too small.
    """
    work = _Export(checkpoint, folder, precision, calibrated, progress)
    work.run().write(folder)
    return work.total


def _check_target(target: Path, force: bool) -> None:
    if not (target.exists() or target.is_symlink()):
        return
    if not force:
        raise BundleError(f'"{target}" exists already; choose another name, or replace it with --force.')
    if not (target / MANIFEST_NAME).is_file():
        raise BundleError(f'"{target}" is not a bundle, so it is not replaced; choose another name or remove it.')


def _calibrate(
    checkpoint: Checkpoint,
    precision: ExportPrecision,
    source: Path | bool,
    target: Path,
    progress: Progress | None,
    restart: bool,
) -> Calibration | None:
    vision, decoder = (graph.weights for graph in (precision.vision, precision.decoder))
    if source and decoder != STATIC and plan_import(checkpoint, precision).whole:
        raise QwenVLError(f'the checkpoint "{checkpoint.path}" is quantized already; export it without --calibrate.')
    if source and decoder in FLOATS and vision != STATIC:
        raise QwenVLError(f"there is nothing to calibrate at {decoder}; choose --precision int4, int8 or {STATIC}.")
    if not source and STATIC not in (vision, decoder):
        return None
    notes: list[str] = []
    samples = source if isinstance(source, Path) else None
    cases = read_samples(samples, source_case_builder(checkpoint), notes.append)
    folder = target.with_name(f"{target.name}.calibration")
    calibration = Calibration(
        checkpoint,
        precision,
        cases,
        folder,
        progress or (lambda *_: None),
        decoder=decoder == STATIC or (bool(source) and decoder not in FLOATS),
        restart=restart,
        notes=notes,
    )
    calibration.run()
    return calibration


def _record_parity(
    folder: Path, checkpoint: Checkpoint, allow_loss: bool, calibrated: bool, progress: Progress | None
) -> None:
    """Compare the written bundle with its checkpoint and keep the figures in its manifest."""
    bundle = Bundle.open(folder)
    report = compare(bundle, checkpoint, progress=progress or silent)
    if not report.passed and not allow_loss:
        rounded = bundle.manifest.precision.method == "rtn" and not calibrated
        better = "--calibrate finds better integers, " if rounded else ""
        raise _LossError(
            "the exported graphs do not compute what the checkpoint computes, so nothing was kept "
            f"({better}--allow-loss would keep it): {report.failures}."
        )
    dataclasses.replace(bundle.manifest, parity=report.to_dict()).write(folder)


class _Export:
    """One export into `folder`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        precision: ExportPrecision,
        calibrated: Calibration | None,
        progress: Progress | None,
    ):
        self.checkpoint = checkpoint
        self.folder = folder
        self.precision = precision
        self.calibrated = calibrated
        self._import = plan_import(checkpoint, precision)
        self.files: dict[str, FileInfo] = {}
        self._progress = progress
        self._done = self.total = 0

    def run(self) -> Manifest:
        checkpoint, family, precision = self.checkpoint, self.checkpoint.family, self.precision
        generation = family.generation_defaults(checkpoint.generation)
        scales = no_scales if self._kept is None else self._kept.input_scales
        vision = vision_layout(family.vision_weights, precision.vision, scales)
        decoder = decoder_layout(family.decoder, precision.decoder, scales)
        graphs = self._save_graphs(vision, decoder)
        table = EmbeddingInfo(
            EMBEDDING_FILE, precision.embedding, (family.decoder.vocab_size, family.decoder.hidden_size)
        )
        self._write_weights(vision, decoder, table)
        shutil.copyfile(checkpoint.tokenizer, self.folder / checkpoint.tokenizer.name)
        self._describe(checkpoint.tokenizer.name)
        digest = checkpoint.digest(self._counter("hashing the checkpoint"))
        return Manifest(
            format=FORMAT,
            family=family.family_info(),
            model=family.model_info(),
            precision=precision.describe(self._method),
            workspace=family.workspace(vision_ort=bool(graphs.vision_ort)),
            graphs=graphs,
            embedding=table,
            tokenizer=checkpoint.tokenizer.name,
            generation=generation,
            files=self.files,
            provenance=Provenance(digest, exporter_name(), tool_versions()),
            parity={},
            sensitivity={} if self._kept is None else self._kept.losses(),
        )

    def _save_graphs(self, vision: WeightLayout, decoder: WeightLayout) -> Graphs:
        """Build and save every graph over the two layouts."""
        family, precision = self.checkpoint.family, self.precision
        # On the CPU MultiHeadAttention takes float32 only.
        own = VISION_ORT_GRAPH if precision.vision.compute == "fp32" else ""
        for name, dialect in ((VISION_GRAPH, STANDARD), (own, ONNXRUNTIME)):
            if name:
                self._save(family.build_vision(vision, dialect), name)
        for dialect in precision.decoder.dialects:
            int8_cache = dialect == STANDARD and precision.decoder.cache == INT8_CACHE
            model = build_decoder(family.decoder, decoder, dialect, int8_cache=int8_cache)
            self._save(model, DECODER_GRAPHS[dialect])
        return Graphs(VISION_GRAPH, {dialect: DECODER_GRAPHS[dialect] for dialect in precision.decoder.dialects}, own)

    def _write_weights(self, vision: WeightLayout, decoder: WeightLayout, table: EmbeddingInfo) -> None:
        """Write both data files and the embedding, whose size is known beforehand."""
        tensors, kept = self.checkpoint.tensor, self._kept
        needed = vision.size_bytes + decoder.size_bytes + embedding_bytes(table.dtype, table.shape)
        self._check_space(needed - (0 if kept is None else kept.bytes_in_place))
        self.total = needed + sum(path.stat().st_size for path in self.checkpoint.source_files)
        with one_thread_an_operator():
            count = self._counter(f"writing {vision.location}")
            self.files[vision.location] = DataFile(self.folder, vision).write(tensors, count)
            count = self._counter(f"writing {decoder.location}")
            if kept is None:
                info = DataFile(self.folder, decoder).write(tensors, count, self._imported)
            else:
                info = kept.write(decoder, tensors, self.folder, count, self._imported)
            self.files[decoder.location] = info
            self._write_embedding()

    @property
    def _imported(self) -> GivenIntegers:
        """The checkpoint's own integers, where the decoder keeps them."""
        return self._import.integers if self.calibrated is None else no_integers

    @property
    def _method(self) -> str:
        """The origin of the decoder's integers, for the manifest."""
        if self.calibrated is not None:
            return self.calibrated.method
        return self._import.method

    @property
    def _kept(self) -> Kept | None:
        return None if self.calibrated is None else self.calibrated.kept

    def _check_space(self, needed: int) -> None:
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise BundleError(
                f'the bundle takes {needed / 1e9:,.1f} GB, but the disk of "{self.folder.parent}" has '
                f"{free / 1e9:,.1f} GB free; make room or write it elsewhere."
            )

    def _save(self, model: ir.Model, name: str) -> None:
        ir.save(model, self.folder / name)
        self._describe(name)

    def _write_embedding(self) -> None:
        weight, dtype = self.checkpoint.family.decoder.embedding, getattr(torch, self.precision.embedding)
        with HashingWriter(self.folder / EMBEDDING_FILE, self._counter(f"writing {EMBEDDING_FILE}")) as out:
            for piece in float_pieces(weight.name, weight.read(self.checkpoint.tensor), dtype):
                out.write(piece)
        self.files[EMBEDDING_FILE] = out.info()

    def _describe(self, name: str) -> None:
        path = self.folder / name
        self.files[name] = FileInfo(path.stat().st_size, sha256(path))

    def _counter(self, what: str) -> Callable[[int], None]:
        def count(size: int) -> None:
            self._done += size
            if self._progress is not None:
                self._progress(min(self._done, self.total), self.total, what)

        return count
