"""Results of comparing PyTorch with a bundle: figures, the limits that a precision sets them, and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
Choices: TypeAlias = npt.NDArray[np.int64]
"""Best tokens [M]."""


@dataclass(frozen=True)
class Limits:
    """Limits of the differences at a precision.

    max_relative: largest difference, as a share of the largest reference value. tie: how close tokens may be, as such
    a share, for either to be the best one.
    min_cosine: smallest cosine of two vectors (a position's features, or logits). max_kl: Kullback-Leibler divergence
    of the token distributions in nats, mean over positions. min_top1: share of positions whose best token agrees.
    """

    max_relative: float
    tie: float
    min_cosine: float
    max_kl: float
    min_top1: float


LIMITS = {
    "fp32": Limits(max_relative=1e-4, tie=1e-4, min_cosine=0.99999, max_kl=1e-5, min_top1=1.0),
    "fp16": Limits(max_relative=1e-2, tie=2e-3, min_cosine=0.9995, max_kl=1e-3, min_top1=0.98),
    "bf16": Limits(max_relative=1e-1, tie=1e-2, min_cosine=0.99, max_kl=2e-2, min_top1=0.95),
    "w8a8": Limits(max_relative=2e-1, tie=3e-2, min_cosine=0.95, max_kl=5e-2, min_top1=0.95),
    "int8": Limits(max_relative=1e-1, tie=2e-2, min_cosine=0.99, max_kl=2e-2, min_top1=0.95),
    "int4": Limits(max_relative=3e-1, tie=1e-1, min_cosine=0.90, max_kl=1e-1, min_top1=0.85),
}
INT8_CACHE_LIMITS = Limits(max_relative=5e-2, tie=1e-2, min_cosine=0.998, max_kl=5e-3, min_top1=0.95)


_COLUMNS = {
    "max_abs": ("max |diff|", "largest difference from the reference, which may be as large as the limit"),
    "cosine": ("cosine", "of the position where both differ most; 1: equal"),
    "kl": ("KL", "how far the probabilities of the tokens differ, in nats, mean over the positions; 0: equal"),
    "top1": ("top-1", "positions at which both find the same token likeliest"),
    "agreed": (
        "greedy",
        "tokens of the answer up to the first that differs; no limit: rounding decides between equals",
    ),
    "iou": ("box IoU", "overlap of the boxes in both answers; no limit, for the same reason"),
}
"""Heading and meaning of a row's figures, by its field."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    max_abs and its limit are absolute; cosine is the worst vector's, None of a range. broken: the figures beyond their
    limits, in words.
    kl and top1 (ties count as agreement) are of logits only. agreed, of greedy answers only: tokens before the first
    that differs, of `tokens`.
    iou: of the box that the graph answers with and the reference's. Neither of the last two has a limit: where two
    tokens are about as likely, any rounding decides.
    """

    stage: str
    graph: str
    case: str
    max_abs: float
    limit: float
    cosine: float | None
    passed: bool
    broken: str = ""
    kl: float | None = None
    top1: float | None = None
    agreed: int | None = None
    tokens: int | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Report:
    """All comparisons, and the graphs that could not be run here, each with its reason."""

    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if every comparison is within its limits, and where nothing could be compared (see `status`)."""
        return all(row.passed for row in self.rows)

    @property
    def status(self) -> str:
        """ "passed", "failed", or "not run here" where nothing could be compared."""
        if not self.rows:
            return "not run here"
        return "passed" if self.passed else "failed"

    @property
    def failures(self) -> str:
        """The comparisons beyond their limits, in words."""
        return "; ".join(f"{row.stage} ({row.graph}, {row.case}): {row.broken}" for row in self.rows if not row.passed)

    def table(self) -> str:
        """The report for a terminal: a row per comparison, the meaning of the columns, what failed, the status last."""
        lines = [("stage", "graph", "prompt", "max |diff|", "limit", "cosine", "KL", "top-1", "greedy", "box IoU", "")]
        for row in self.rows:
            kl = "" if row.kl is None else f"{row.kl:.2e}"
            top1 = "" if row.top1 is None else f"{row.top1:.1%}"
            greedy = "" if row.agreed is None else f"{row.agreed}/{row.tokens}"
            iou = "" if row.iou is None else f"{row.iou:.2f}"
            cosine = "" if row.cosine is None else f"{row.cosine:.7f}"
            numbers = (f"{row.max_abs:.2e}", f"{row.limit:.2e}", cosine, kl, top1, greedy, iou)
            lines.append((row.stage, row.graph, row.case, *numbers, "ok" if row.passed else "FAILED"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        notes = [f"not compared: {what}" for what in self.skipped]
        failed = [f"{row.stage} ({row.graph}, {row.case}): {row.broken}" for row in self.rows if not row.passed]
        rows = ["  ".join(line).rstrip() for line in padded] if self.rows else []
        return "\n".join([*rows, *self._legend(), *notes, *failed, self.status])

    def _legend(self) -> list[str]:
        """The meanings of the columns that have figures."""
        has = {name for name in _COLUMNS if any(getattr(row, name) is not None for row in self.rows)}
        lines = [f"  {title:<12}{meaning}" for name, (title, meaning) in _COLUMNS.items() if name in has]
        return ["", *lines, ""] if lines else []

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, for the manifest."""
        rows = map(dataclasses.asdict, self.rows)
        stages = [{key: value for key, value in row.items() if value not in (None, "")} for row in rows]
        passed = self.passed if self.rows else None
        return {"passed": passed, "status": self.status, "skipped": list(self.skipped), "stages": stages}


def values_row(
    stage: str,
    graph: str,
    case: str,
    found: FloatArray,
    wanted: FloatArray,
    limit: float,
    min_cosine: float = -1.0,
) -> Row:
    """Compare values [.., H] whose differences may be `limit`, an absolute one."""
    max_abs, cosine = float(np.abs(found - wanted).max()), _cosine(found, wanted)
    broken = _broken((max_abs > limit, f"differ by {max_abs:.2e} (limit {limit:.2e})"), _low_cosine(cosine, min_cosine))
    return Row(stage, graph, case, max_abs, limit, cosine, not broken, broken)


def features_row(
    graph: str, case: str, found: FloatArray, wanted: FloatArray, limits: Limits, *, stage: str = "image features"
) -> Row:
    """Compare image features [.., H]."""
    limit = limits.max_relative * float(np.abs(wanted).max())
    return values_row(stage, graph, case, found, wanted, limit, limits.min_cosine)


def logits_row(
    graph: str,
    case: str,
    found: FloatArray,
    wanted: FloatArray,
    limits: Limits,
    greedy: tuple[int, int] | None = None,
    *,
    stage: str = "logits",
    exact: float | None = None,
) -> Row:
    """Compare teacher-forced logits [rows, V].

    greedy: what `agreement` found of the graph's own answer. exact: the largest difference where that is smaller than
    `limits` allow; the greedy answers must then be equal.
    """
    limit = limits.max_relative * float(np.abs(wanted).max())
    limit = limit if exact is None else min(limit, exact)
    agreed, tokens = greedy or (None, None)
    max_abs, cosine = float(np.abs(found - wanted).max()), _cosine(found, wanted)
    chosen = np.take_along_axis(wanted, found.argmax(-1)[:, None], axis=-1)[:, 0]
    top1 = float(np.mean(wanted.max(-1) - chosen <= limits.tie * np.abs(wanted).max()))
    kl = divergence(found, wanted)
    broken = _broken(
        (max_abs > limit, f"differ by {max_abs:.2e} (limit {limit:.2e})"),
        _low_cosine(cosine, limits.min_cosine),
        (kl > limits.max_kl, f"KL {kl:.2e} (limit {limits.max_kl:.0e})"),
        (top1 < limits.min_top1, f"top-1 {top1:.1%} (limit {limits.min_top1:.0%})"),
        (exact is not None and agreed != tokens, f"greedy answers part after {agreed} tokens"),
    )
    return Row(stage, graph, case, max_abs, limit, cosine, not broken, broken, kl, top1, agreed, tokens)


def _broken(*limits: tuple[bool, str]) -> str:
    return ", ".join(words for broken, words in limits if broken)


def _low_cosine(cosine: float, limit: float) -> tuple[bool, str]:
    return cosine < limit, f"cosine {cosine:.5f} (limit {limit})"


def overlap(a: tuple[int, int, int, int] | None, b: tuple[int, int, int, int] | None) -> float | None:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where only one is a box, None where neither is."""
    if a is None or b is None:
        return None if a is b else 0.0
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = float(np.prod(np.maximum(sides, 0)))
    areas = sum(max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b))
    return shared / (areas - shared) if areas > shared else float(a == b)


def divergence(found: FloatArray, wanted: FloatArray) -> float:
    """KL(wanted || found) of the distributions that logits [rows, V] give, in nats, mean over rows."""
    p, q = (_log_softmax(x.astype(np.float64)) for x in (wanted, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def agreement(tokens: Sequence[int], ours: Choices, theirs: Choices) -> tuple[int, int] | None:
    """Count the tokens before the first at which two greedy answers part, and all tokens; None: that cannot be told.

    Args:
        tokens: M ids that both were given, a greedy answer of one of them or of another decoder.
        ours: best tokens [M] of the one, given the tokens before.
        theirs: those of the other.
    """
    equal = [np.array(tokens) == best for best in (ours, theirs)]
    first = [len(tokens) if each.all() else int(np.argmin(each)) for each in equal]
    same = min(first)
    if first[0] == first[1] < len(tokens) and ours[same] == theirs[same]:
        return None  # both choose the same other token
    return same, len(tokens)


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(-1, keepdims=True)
    logs: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return logs


def _cosine(found: FloatArray, wanted: FloatArray) -> float:
    """The smallest cosine of two vectors."""
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (found, wanted))
    cosine = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)
    return float(cosine.min())
