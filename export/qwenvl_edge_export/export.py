"""Checkpoint to bundle: streamed, so that memory does not follow the model's size, and whole or not there at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    DECODER_GRAPHS,
    EMBEDDING_FILE,
    ONNXRUNTIME,
    STANDARD,
    VISION_DATA,
    VISION_GRAPH,
    VISION_ORT_GRAPH,
)
from qwenvl_edge.bundle.embedding import embedding_bytes
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge.bundle.manifest import FORMAT, MANIFEST_NAME, EmbeddingInfo, Graphs, Manifest, Provenance
from qwenvl_edge.errors import BundleError, CheckpointError, QwenVLError
from qwenvl_edge.families import create_family
from qwenvl_edge.inputs.tokenizer import Tokenizer
from qwenvl_edge_export.checkpoint.reader import TOKENIZER_NAME, Checkpoint
from qwenvl_edge_export.families.qwen_vl.metadata import (
    exporter_name,
    generation_defaults,
    model_info,
    tool_versions,
    workspace,
)
from qwenvl_edge_export.families.qwen_vl.vision import build_vision
from qwenvl_edge_export.files.atomic_folder import clean_up, staged_folder
from qwenvl_edge_export.files.thread_map import one_thread_an_operator
from qwenvl_edge_export.graphs.data_file import HashingWriter, WeightFile, float_pieces
from qwenvl_edge_export.graphs.decoder import build_decoders
from qwenvl_edge_export.options import FLOATS, STATIC, ExportPrecision
from qwenvl_edge_export.quantization.calibration import Calibration, decoder_names
from qwenvl_edge_export.quantization.formats import Given, nothing_given
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.quantization.vision_calibration import vision_names
from qwenvl_edge_export.verification.cases import CaseBuilder
from qwenvl_edge_export.verification.verify import compare

Progress = Callable[[int, int, str], None]

FAMILY = "qwen_vl"


def export(
    checkpoint_path: str | Path,
    bundle_path: str | Path,
    *,
    precision: ExportPrecision | None = None,
    force: bool = False,
    allow_loss: bool = False,
    check: bool = True,
    calibration: Path | bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export the checkpoint in folder `checkpoint_path` to a new bundle at `bundle_path`.

    Args:
        checkpoint_path: a Qwen-VL checkpoint in the published layout.
        bundle_path: the folder to write; it appears when it is whole.
        precision: what the weights become; None keeps float32.
        force: replace the bundle at `bundle_path`; the old one goes when the new one is whole.
        allow_loss: keep a bundle that differs from its checkpoint by more than its precision may.
        check: compare the bundle with PyTorch when it is written.
        calibration: quantize the decoder on samples of its use: True for built-in ones, or a folder of pictures, or a
            JSONL file (quantization/samples.py). W8A8 is always calibrated, on built-in ones if this is False. What an
            interrupted calibration has done lies beside `bundle_path` and is continued.
        progress: called with (bytes done, bytes in total, what is being done).

    Returns:
        The bundle, opened.

    Raises:
        CheckpointError: the checkpoint is not whole, or does not fit its configuration.
        QwenVLError: a pattern of layers to be kept matches none; or there is nothing to calibrate, or not on these
            samples.
        BundleError: `bundle_path` exists and `force` is not set or it is no bundle; it cannot be written (disk full,
            no permission); or the graphs do not compute what the checkpoint computes, within their precision's limits.
    """
    target = Path(bundle_path).absolute()
    clean_up(target)
    _check_target(target, force)
    checkpoint = Checkpoint.open(checkpoint_path)
    _check_tokenizer(checkpoint)
    config = checkpoint.config
    precision = (precision or ExportPrecision.choose()).fitted((config.hidden_size, config.mlp_width))
    precision.check_kept([*decoder_names(checkpoint.config), *vision_names(checkpoint)])
    imported = checkpoint.group if precision.decoder.weights == "int4" else None
    if imported is not None:
        precision = precision.of_groups(imported)
    calibrated = _calibrate(checkpoint, precision, calibration, target, progress)
    with staged_folder(target, replace=force) as folder:
        done = write_bundle(checkpoint, folder, precision, calibrated, progress)
        if check:
            if progress is not None:
                progress(done, done, "comparing with PyTorch")
            _record_parity(folder, checkpoint, allow_loss)
    if calibrated is not None:
        calibrated.remove()
    return Bundle.open(target)


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


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    config, vision = checkpoint.config, checkpoint.config.vision
    try:
        family = create_family(FAMILY, image_start_id=vision.image_start_id, image_tokens=vision.n_queries)
        ranks = Tokenizer(checkpoint.path / TOKENIZER_NAME, family.special_tokens).rank_count
    except BundleError as error:
        raise CheckpointError(f'the checkpoint "{checkpoint.path}" cannot be exported: {error}') from None
    if ranks != family.num_ranks or config.vocab_size < family.decodable:
        raise CheckpointError(
            f'the checkpoint "{checkpoint.path}" does not fit its {TOKENIZER_NAME}: {ranks:,} ranks there, but '
            f"image_start_id {vision.image_start_id} and vocab_size {config.vocab_size} in config.json."
        )


def _calibrate(
    checkpoint: Checkpoint,
    precision: ExportPrecision,
    source: Path | bool,
    target: Path,
    progress: Progress | None,
) -> Calibration | None:
    vision, decoder = (graph.weights for graph in (precision.vision, precision.decoder))
    if source and decoder != STATIC and checkpoint.group is not None:
        raise QwenVLError(f'the checkpoint "{checkpoint.path}" is quantized already; export it without --calibrate.')
    if source and decoder in FLOATS and vision != STATIC:
        raise QwenVLError(f"there is nothing to calibrate at {decoder}; choose --precision int4, int8 or {STATIC}.")
    if not source and STATIC not in (vision, decoder):
        return None
    model, generation = model_info(checkpoint.config), generation_defaults(checkpoint.generation)
    builder = CaseBuilder(FAMILY, model, generation, checkpoint.path / TOKENIZER_NAME)
    notes: list[str] = []
    cases = read_samples(source if isinstance(source, Path) else None, builder, notes.append)
    folder = target.with_name(f"{target.name}.calibration")
    calibration = Calibration(
        checkpoint,
        precision,
        cases,
        folder,
        progress or (lambda *_: None),
        decoder=decoder == STATIC or (bool(source) and decoder not in FLOATS),
        notes=notes,
    )
    calibration.run()
    return calibration


def _record_parity(folder: Path, checkpoint: Checkpoint, allow_loss: bool) -> None:
    """Compare the written bundle with its checkpoint and keep the figures in its manifest."""
    bundle = Bundle.open(folder)
    report = compare(bundle, checkpoint)
    if not report.passed and not allow_loss:
        raise BundleError(
            "the exported graphs do not compute what the checkpoint computes, so nothing was kept (--allow-loss would "
            f"keep it): {report.failures}."
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
        self.files: dict[str, FileInfo] = {}
        self._progress = progress
        self._done = self.total = 0

    def run(self) -> Manifest:
        checkpoint, config, precision = self.checkpoint, self.checkpoint.config, self.precision
        generation = generation_defaults(checkpoint.generation)
        vision_weights = WeightFile(VISION_DATA, checkpoint)
        vision_given, given, method = self._given()
        # On the CPU MultiHeadAttention takes float32 only.
        own = VISION_ORT_GRAPH if precision.vision.compute == "fp32" else ""
        for name, dialect in ((VISION_GRAPH, STANDARD), (own, ONNXRUNTIME)):
            if name:
                model = build_vision(checkpoint, vision_weights, precision.vision, vision_given, dialect)
                self._save(model, name)
        decoders, decoder_weights = build_decoders(checkpoint, precision.decoder, given)
        for dialect, model in decoders.items():
            self._save(model, DECODER_GRAPHS[dialect])
        table = EmbeddingInfo(EMBEDDING_FILE, precision.embedding, (config.vocab_size, config.hidden_size))
        needed = vision_weights.size_bytes + decoder_weights.size_bytes + embedding_bytes(table.dtype, table.shape)
        kept = None if self.calibrated is None else self.calibrated.kept
        self._check_space(needed - (0 if kept is None else kept.bytes_in_place))
        self.total = needed + sum(path.stat().st_size for path in checkpoint.source_files)

        with one_thread_an_operator():
            self._write(vision_weights, vision_weights.write)
            self._write(
                decoder_weights, decoder_weights.write if kept is None else partial(kept.write, decoder_weights)
            )
            self._write_embedding()
        shutil.copyfile(checkpoint.path / TOKENIZER_NAME, self.folder / TOKENIZER_NAME)
        self._describe(TOKENIZER_NAME)
        digest = checkpoint.digest(self._counter("hashing the checkpoint"))
        return Manifest(
            format=FORMAT,
            family=FAMILY,
            model=model_info(config),
            precision=precision.describe(method),
            workspace=workspace(config, vision_ort=bool(own)),
            graphs=Graphs(VISION_GRAPH, {dialect: DECODER_GRAPHS[dialect] for dialect in decoders}, own),
            embedding=table,
            tokenizer=TOKENIZER_NAME,
            generation=generation,
            files=self.files,
            provenance=Provenance(digest, exporter_name(), tool_versions()),
            parity={},
            sensitivity={} if kept is None else kept.losses(),
        )

    def _given(self) -> tuple[Given, Given, str]:
        """What is known of the weights of the picture side and of the decoder, and how the decoder's was found."""
        calibrated = nothing_given if self.calibrated is None else self.calibrated.kept.given
        if self.checkpoint.group is not None and self.precision.decoder.weights == "int4":
            return calibrated, self.checkpoint.integers, "imported"
        return calibrated, calibrated, "rtn" if self.calibrated is None else self.calibrated.method

    def _check_space(self, needed: int) -> None:
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise BundleError(
                f'the bundle takes {needed / 1e9:,.1f} GB, but the disk of "{self.folder.parent}" has '
                f"{free / 1e9:,.1f} GB free; make room or write it elsewhere."
            )

    def _save(self, model: ir.Model, name: str) -> None:
        ir.save(model, self.folder / name)
        self._describe(name)

    def _write(self, weights: WeightFile, write: Callable[[Path, Callable[[int], None]], FileInfo]) -> None:
        self.files[weights.location] = write(self.folder, self._counter(f"writing {weights.location}"))

    def _write_embedding(self) -> None:
        name = "transformer.wte.weight"
        with HashingWriter(self.folder / EMBEDDING_FILE, self._counter(f"writing {EMBEDDING_FILE}")) as out:
            for piece in float_pieces(name, self.checkpoint.tensor(name), getattr(torch, self.precision.embedding)):
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
