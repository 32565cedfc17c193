"""PyTorch against the bundle, stage by stage: image features, then teacher-forced logits of both decoder dialects.

The bundle's side goes through the runtime's own prompt, preprocessing, cache and backend. The answer's tokens reach the
decoder as single steps and as a chunk, so the cache, positions and offsets are part of what is compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qwenvl_edge.backends.onnxruntime import OnnxRuntimeBackend, can_run
from qwenvl_edge.bundle import Bundle
from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint import Checkpoint
from qwenvl_edge_export.metadata import model_info
from qwenvl_edge_export.modeling import QwenVL, ntk_alpha
from qwenvl_edge_export.prompts import Case, builtin_cases
from qwenvl_edge_export.streaming import streamed_model

FloatArray = npt.NDArray[np.float32]

PROMPT_ROWS = 16
"""How many of a prompt's last positions are compared; the answer's are compared all."""
SINGLE_STEPS = 2
"""How many of the answer's tokens are decoded one at a time before the rest goes as one chunk."""


@dataclass(frozen=True)
class Limits:
    """What a precision may differ by: largest absolute difference as a share of the largest reference value."""

    max_relative: float
    min_cosine: float
    min_top1: float


LIMITS = {"fp32": Limits(max_relative=1e-4, min_cosine=0.99999, min_top1=1.0)}


@dataclass(frozen=True)
class Row:
    """One comparison.

    top1: the share of positions whose best token agrees, up to ties within the limit; None for image features.
    """

    stage: str
    graph: str
    case: str
    max_abs: float
    limit: float
    cosine: float
    top1: float | None
    passed: bool


@dataclass(frozen=True)
class Report:
    """All comparisons, and the decoder dialects that the installed ONNX Runtime is too old to run."""

    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every comparison is within its limits."""
        return all(row.passed for row in self.rows)

    @property
    def failures(self) -> str:
        """What is beyond its limits, in words."""
        return "; ".join(
            f"{row.stage} ({row.graph}, {row.case}) differ by {row.max_abs:.2e}, limit {row.limit:.2e}"
            for row in self.rows
            if not row.passed
        )

    def table(self) -> str:
        """The report as a table for a terminal."""
        lines = [("stage", "graph", "prompt", "max |diff|", "limit", "cosine", "top-1", "")]
        for row in self.rows:
            top1 = "" if row.top1 is None else f"{row.top1:.1%}"
            numbers = (f"{row.max_abs:.2e}", f"{row.limit:.2e}", f"{row.cosine:.7f}", top1)
            lines.append((row.stage, row.graph, row.case, *numbers, "ok" if row.passed else "FAILED"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        notes = [f'not compared: "{dialect}", which needs a newer ONNX Runtime' for dialect in self.skipped]
        return "\n".join(["  ".join(line).rstrip() for line in padded] + notes)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, for the manifest."""
        stages = [dataclasses.asdict(row) for row in self.rows]
        return {"passed": self.passed, "skipped": list(self.skipped), "stages": stages}


def verify(bundle: Bundle | str | Path, checkpoint: Checkpoint | str | Path) -> Report:
    """Check the SHA-256 of every file of `bundle` and compare it with the `checkpoint` it was made from.

    Raises:
        BundleError: the bundle is missing or damaged.
        CheckpointError: the checkpoint is not whole, or has other dimensions than the bundle.
        BackendError: the bundle's graphs cannot be run, or yield NaN or infinity.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    bundle.check_files()
    return compare(bundle, checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint))


def compare(bundle: Bundle, checkpoint: Checkpoint) -> Report:
    """Like verify, for a bundle whose files are known to be whole."""
    _check_same_model(bundle, checkpoint)
    model = streamed_model(checkpoint)
    cases = builtin_cases(bundle)
    dialects = bundle.manifest.graphs.decoder
    backends = {dialect: OnnxRuntimeBackend(bundle, dialect=dialect) for dialect in dialects if can_run(dialect)}
    rows: list[Row] = []
    for case in cases:
        features, logits = _reference(model, case)
        found = features
        if len(case.pixels):
            found = next(iter(backends.values())).encode_images(case.pixels)
            rows.append(_features_row(bundle, case, found, features))
        for dialect, backend in backends.items():
            rows.append(_logits_row(bundle, case, dialect, _decode(backend, bundle, case, found), logits))
    return Report(tuple(rows), tuple(dialect for dialect in dialects if dialect not in backends))


def _check_same_model(bundle: Bundle, checkpoint: Checkpoint) -> None:
    want, have = (dataclasses.asdict(info) for info in (bundle.manifest.model, model_info(checkpoint.config)))
    if different := [f"{name} {have[name]} instead of {want[name]}" for name in want if have[name] != want[name]]:
        raise CheckpointError(
            f'the bundle "{bundle.path}" was not made from the checkpoint "{checkpoint.path}", which has '
            f"{', '.join(different)}."
        )


@torch.no_grad()
def _reference(model: QwenVL, case: Case) -> tuple[FloatArray, FloatArray]:
    """PyTorch's image features [N, Q, H] and logits [rows, V] for prompt and answer in one pass without a cache."""
    config = model.config
    ids = torch.from_numpy(np.concatenate([case.prompt.ids, case.answer]))[None]
    features = torch.empty(0, config.vision.n_queries, config.hidden_size)
    if len(case.pixels):
        features = model.encode_images(torch.from_numpy(case.pixels))
    length = len(case.prompt.ids)
    alpha = ntk_alpha(length, config.seq_length) if config.use_dynamic_ntk else 1.0
    last = min(PROMPT_ROWS, length) + len(case.answer)
    logits, _ = model.decode(model.embed(ids, features), alpha=alpha, last=last)
    return features.numpy(), logits[0].numpy()


def _decode(backend: OnnxRuntimeBackend, bundle: Bundle, case: Case, features: FloatArray) -> FloatArray:
    """The bundle's logits [rows, V]: prefill of the prompt, then the answer through the cache."""
    ids = np.concatenate([case.prompt.ids, case.answer])
    embeds = bundle.embedding[ids][None]
    for start, picture in zip(case.prompt.image_starts, features, strict=True):
        embeds[0, start : start + len(picture)] = picture
    length, total = len(case.prompt.ids), len(ids)
    cache = backend.new_cache(1, total)
    cache.reset(length)
    bounds = [0, *range(length, min(length + SINGLE_STEPS, total - 1) + 1), total]
    parts = []
    for start, end in itertools.pairwise(bounds):
        wanted = np.arange(max(start, length - PROMPT_ROWS), end, dtype=np.int64)
        positions = np.arange(start, end, dtype=np.int64)
        write = np.array([start], np.int64)
        logits = backend.decode(cache, embeds[:, start:end], positions[None], write, wanted[None] - start)
        parts.append(logits[0])
    return np.concatenate(parts)


def _features_row(bundle: Bundle, case: Case, found: FloatArray, wanted: FloatArray) -> Row:
    limits = LIMITS[bundle.manifest.precision.vision]
    max_abs, limit, cosine = _distance(found, wanted, limits)
    passed = max_abs <= limit and cosine >= limits.min_cosine
    return Row("image features", "vision", case.name, max_abs, limit, cosine, None, passed)


def _logits_row(bundle: Bundle, case: Case, dialect: str, found: FloatArray, wanted: FloatArray) -> Row:
    limits = LIMITS[bundle.manifest.precision.decoder]
    max_abs, limit, cosine = _distance(found, wanted, limits)
    chosen = np.take_along_axis(wanted, found.argmax(-1)[:, None], axis=-1)[:, 0]
    top1 = float(np.mean(wanted.max(-1) - chosen <= limit))
    passed = max_abs <= limit and cosine >= limits.min_cosine and top1 >= limits.min_top1
    return Row("logits", dialect, case.name, max_abs, limit, cosine, top1, passed)


def _distance(found: FloatArray, wanted: FloatArray, limits: Limits) -> tuple[float, float, float]:
    """Largest absolute difference, what it may be, and the smallest cosine of two vectors."""
    limit = limits.max_relative * float(np.abs(wanted).max())
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (found, wanted))
    cosine = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)
    return float(np.abs(found - wanted).max()), limit, float(cosine.min())
