"""Checkpoint to bundle: streamed, so that memory does not follow the model's size, and whole or not there at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.place import check_place
from qwenvl_edge.errors import BundleError, QwenVLError
from qwenvl_edge_export.bundle_writer import Progress, write_bundle
from qwenvl_edge_export.checkpoint.importing import plan_import
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.files.atomic_folder import clean_up, staged_folder
from qwenvl_edge_export.files.kept_plans import keep_plans
from qwenvl_edge_export.files.path_lock import sole_writer
from qwenvl_edge_export.options import FLOATS, STATIC, ExportPrecision
from qwenvl_edge_export.quantization.calibration import Calibration
from qwenvl_edge_export.quantization.samples import read_samples
from qwenvl_edge_export.verification.cases import source_case_builder
from qwenvl_edge_export.verification.stages import silent
from qwenvl_edge_export.verification.verify import compare

_SMALL_BYTES = 1 << 30
"""Weights as float32 of a model that takes them where nobody asked for a precision and 8 bits lose too much."""
_FLOATS_INSTEAD = (
    "8-bit weights change this small model's answers beyond their limits, so its bundle has float32; "
    "--precision int8 --allow-loss would keep 8 bits."
)

_PLANS_GONE = (
    "the TensorRT plans of the old bundle ({targets}) do not fit the new one and went with it; `qwenvl build {bundle}` "
    "makes new ones."
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
        force: replace the bundle at `bundle_path`; the old one goes when the new one is whole. TensorRT plans stay if
            the new bundle has the same files.
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
    check_place(target, force=force)
    checkpoint = Checkpoint.open(checkpoint_path, revision=revision, chat_format=chat_format)
    if min_pixels is not None or max_pixels is not None:
        checkpoint = dataclasses.replace(checkpoint, family=checkpoint.family.limited(min_pixels, max_pixels))
    note = note or (lambda _: None)
    precision = _plan(checkpoint, precision, note, calibrated=bool(calibration))

    def write(precision: ExportPrecision, calibrated: Calibration | None) -> None:
        with staged_folder(target, replace=force) as folder:
            write_bundle(checkpoint, folder, precision, calibrated, progress)
            if check:
                _record_parity(folder, checkpoint, allow_loss, calibrated is not None, progress)
            gone = keep_plans(target, folder)
        if gone:
            note(_PLANS_GONE.format(targets=", ".join(gone), bundle=bundle_path))

    with sole_writer(target, "an export", wait=wait, progress=progress):
        clean_up(target)
        check_place(target, force=force)
        calibrated = _calibrate(checkpoint, precision, calibration, target, progress, restart_calibration)
        try:
            write(precision, calibrated)
        except _LossError:
            if not precision.is_default or calibrated is not None or _float_bytes(checkpoint.family) > _SMALL_BYTES:
                raise
            note(_FLOATS_INSTEAD)
            write(ExportPrecision.choose("fp32"), None)
        if calibrated is not None:
            calibrated.remove()
    return Bundle.open(target)


class _LossError(BundleError):
    """A bundle that differs from its checkpoint by more than its precision allows."""


def _plan(
    checkpoint: Checkpoint, wanted: ExportPrecision | None, note: Callable[[str], None], *, calibrated: bool
) -> ExportPrecision:
    """Return the precision of every part; faults of the checkpoint or the wish show here, before hours of work."""
    family = checkpoint.family
    family.check_tokenizer(checkpoint.path)
    family.generation_defaults(checkpoint.generation)
    shapes = {weight.name: weight.shape for weight in family.decoder.linear_weights()}
    precision = (wanted or ExportPrecision.choose()).fitted(shapes).of_heads(family.decoder.head_dim)
    precision.check_kept(list(family.linear_names()))
    imported = plan_import(checkpoint, precision)
    for sentence in (*checkpoint.notes, *imported.notes(calibrated=calibrated)):
        note(sentence)
    return imported.precision


def _float_bytes(family: ExportFamily) -> int:
    """Bytes of all weights as float32."""
    return 4 * sum(math.prod(shape) for shape in family.tensors.values())


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
