"""PyTorch against the bundle, stage by stage: image features, then teacher-forced logits of each decoder dialect.

Each side computes all cases before the next is loaded, in pieces where it is large: what is in memory is about a
layer's weights and a picture's activations (streamed_reference.py, graph_pieces.py).

The answer's tokens reach the decoder as single steps and as a chunk, so the cache, positions and offsets are part of
what is compared. Decoders that can also answer greedily by themselves: PyTorch, given that answer, shows the first
token that it would have chosen otherwise, and there the two greedy answers part.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

from qwenvl_edge.backends.onnxruntime.session import can_run, missing
from qwenvl_edge.backends.select import ONNXRUNTIME, TENSORRT, BackendOptions, select_backend
from qwenvl_edge.backends.tensorrt.backend import TensorRTBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.errors import BackendError, CheckpointError
from qwenvl_edge_export.checkpoint.listing import few, shortened
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.verification.comparison import Comparison
from qwenvl_edge_export.verification.golden import GoldenComparison, read_golden
from qwenvl_edge_export.verification.graph_runner import PIECE_BYTES
from qwenvl_edge_export.verification.limits import Report
from qwenvl_edge_export.verification.sides import GraphSide, PlanSide, Side
from qwenvl_edge_export.verification.stages import Progress, silent

_WIDENED = (
    "bfloat16 arithmetic: ONNX Runtime's CPU provider has no bfloat16, so the graphs ran in float32 on the stored "
    "weights"
)


def verify(
    bundle: Bundle | str | Path,
    checkpoint: Checkpoint | str | Path,
    *,
    backend: str = ONNXRUNTIME,
    progress: Progress = silent,
    revision: str | None = None,
) -> Report:
    """Check the SHA-256 of every file of `bundle` and compare it with the `checkpoint` it was made from.

    Args:
        bundle: the bundle.
        checkpoint: its checkpoint; as Checkpoint.open takes it.
        revision: of a checkpoint on the Hub.
        backend: "onnxruntime" compares the graphs on the CPU, in each dialect; "tensorrt" the plan for this machine.
        progress: called with (units done, units in total, the step at hand).

    Raises:
        BundleError: the bundle is missing or damaged.
        CheckpointError: the checkpoint is not whole, or has other dimensions than the bundle.
        BackendError: the bundle's graphs, or its plan, cannot be run here, or yield NaN or infinity.
    """
    bundle = _whole(bundle)
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint, revision=revision)
    return compare(bundle, checkpoint, backend=backend, progress=progress)


def compare(
    bundle: Bundle, checkpoint: Checkpoint, *, backend: str = ONNXRUNTIME, progress: Progress = silent
) -> Report:
    """Compare like `verify`, for a bundle whose files are known to be whole."""
    _check_same_model(bundle, checkpoint)
    sides, skipped = _sides(bundle, backend)
    if not sides:
        return Report((), skipped)
    report = Comparison(bundle, checkpoint, sides, progress).run()
    return dataclasses.replace(report, skipped=(*skipped, *report.skipped))


def verify_golden(
    bundle: Bundle | str | Path, folder: str | Path, *, backend: str = ONNXRUNTIME, progress: Progress = silent
) -> Report:
    """Check the files of `bundle` and compare it with the tensors that another implementation recorded in `folder`.

    Args:
        bundle: of the checkpoint that the tensors were recorded from.
        folder: golden_vision.npz, golden_text.npz, golden_meta.json and their pictures; see golden.py.
        backend: as for `verify`.
        progress: as for `verify`.

    Raises:
        BundleError: the bundle is missing or damaged.
        QwenVLError: a file or an array of the folder is missing, damaged, or of another model.
        BackendError: the bundle's graphs, or its plan, cannot be run here, or yield NaN or infinity.
    """
    bundle = _whole(bundle)
    golden = read_golden(Path(folder))
    sides, skipped = _sides(bundle, backend)
    report = GoldenComparison(bundle, golden, sides, progress).run()
    return dataclasses.replace(report, skipped=(*skipped, *report.skipped))


def _whole(bundle: Bundle | str | Path) -> Bundle:
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    bundle.check_files()
    return bundle


def _sides(bundle: Bundle, backend: str) -> tuple[list[Side], tuple[str, ...]]:
    """The sides that can be compared here, ONNX Runtime's dialects or the plan, and notes on those that cannot."""
    if backend == TENSORRT:
        opened = select_backend(BackendOptions(bundle, None, None, 1), TENSORRT, "auto").backend
        return [PlanSide(bundle, cast("TensorRTBackend", opened))], ()
    if backend != ONNXRUNTIME:
        raise BackendError(f'a bundle is verified with "{ONNXRUNTIME}" or "{TENSORRT}", not with "{backend}".')
    dialects = bundle.manifest.graphs.decoder
    notes = [f'"{name}", which needs {missing(name)}' for name in dialects if not can_run(name)]
    if "bf16" in bundle.manifest.precision.compute.values():
        notes.append(_WIDENED)
    return [GraphSide(bundle, name, budget_bytes=PIECE_BYTES) for name in dialects if can_run(name)], tuple(notes)


def _check_same_model(bundle: Bundle, checkpoint: Checkpoint) -> None:
    manifest, family = bundle.manifest, checkpoint.family
    want = dataclasses.asdict(manifest.model) | manifest.family.config
    have = dataclasses.asdict(family.model_info()) | family.family_info().config
    if different := [name for name in want if have[name] != want[name]]:
        pairs = [f"{name} {shortened(str(have[name]))} instead of {shortened(str(want[name]))}" for name in different]
        raise CheckpointError(
            f'the bundle "{bundle.path}" was not made from the checkpoint "{checkpoint.path}", which has {few(pairs)}.'
        )
