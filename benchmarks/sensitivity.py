"""Losses of each layer to quantization: the share by which its output changes on the calibration samples.

    python benchmarks/sensitivity.py BUNDLE [--plot FILE]

BUNDLE was exported with --calibrate. Rounded to nearest is shown beside what calibration made of it; the worst layers
are candidates for --keep-fp16.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from common import arguments, conditions, finish, needed_bundle

from qwenvl_edge.bundle.bundle import Bundle

_LAYER = re.compile(
    r"transformer\.(h|(?P<picture>visual)\.transformer\.resblocks)\.(?P<layer>\d+)\.(?P<kind>.+)\.weight(\.\w+)?"
)


def table(losses: dict[str, dict[str, float]]) -> str:
    """Layers, the worst one first."""
    lines = [f"{'weight':<44}{'rounded':>10}{'calibrated':>12}"]
    for name, each in sorted(losses.items(), key=lambda item: -item[1]["calibrated"]):
        lines.append(f"{name:<44}{each['rtn']:>10.2%}{each['calibrated']:>12.2%}")
    return "\n".join(lines)


def plot(path: Path, losses: dict[str, dict[str, float]]) -> None:
    """One line a kind of layer over the depth, calibrated solid and rounded dotted; others are in the table alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for name, each in losses.items():
        if match := _LAYER.fullmatch(name):
            kind = f"ViT {match['kind']}" if match["picture"] else match["kind"]
            kinds.setdefault(kind, []).append((int(match["layer"]), each))
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for i, (kind, points) in enumerate(sorted(kinds.items())):
        layers = [layer for layer, _ in points]
        axes.plot(layers, [each["calibrated"] * 100 for _, each in points], f"C{i}o-", label=kind)
        axes.plot(layers, [each["rtn"] * 100 for _, each in points], f"C{i}:")
    axes.set_xlabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("change of the output, % (dotted: rounded)")
    axes.set_ylim(0)
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the table, draw what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    needed_bundle(options.bundle)
    before = conditions()
    manifest = Bundle.open(options.bundle).manifest
    losses: dict[str, Any] = manifest.sensitivity
    if not losses:
        raise SystemExit(f'the bundle "{options.bundle}" was not calibrated; export it with --calibrate.')
    print(table(losses))
    if options.plot:
        plot(options.plot, losses)
    worst = max(losses, key=lambda name: losses[name]["calibrated"])
    means = {way: sum(each[way] for each in losses.values()) / len(losses) for way in ("rtn", "calibrated")}
    headline = {"mean_rounded": means["rtn"], "mean_calibrated": means["calibrated"], "worst": worst}
    finish(options, before, headline, {"precision": manifest.precision.decoder, "losses": losses})


if __name__ == "__main__":
    main()
