"""The training logs as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

CURVES = {
    "vision": ("kind", "colour", "hundreds", "tens", "letters"),
    "language": ("words", "digits", "text", "patches seen", "places seen"),
}


def plot_curves(work: Path, target: Path, wanted: Mapping[str, Sequence[str]] = CURVES) -> None:
    """Figures over steps of both stages, from the logs WORK/STAGE.jsonl. wanted: stages, and the figures of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for axes, (stage, names) in zip(panels, wanted.items(), strict=True):
        lines = [json.loads(line) for line in (work / f"{stage}.jsonl").read_text().splitlines()]
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*sorted(points), strict=True), label=name)
        axes.set(title=f"stage {stage}", xlabel="step", ylabel="accuracy on training batches", ylim=(0, 1))
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)
