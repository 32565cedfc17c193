"""The table and the plot of peers.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def print_table(details: dict[str, Any]) -> None:
    """Medians and quartiles of each case's subjects, and the ratios."""
    for case, subjects in details.items():
        print(f"\n{case}")
        for name, found in subjects.items() if isinstance(subjects, dict) else [("", subjects)]:
            if not isinstance(found, dict):
                print(f"  {name} {found}")
                continue
            for stage, each in found.items():
                if isinstance(each, dict):
                    quartiles = f"({each['q25']:.2f} .. {each['q75']:.2f})"
                    print(f"  {name:<32}{stage:<22}{each['median']:>10.2f} {quartiles}")


def plot(path: Path, headline: dict[str, Any]) -> None:
    """Bars of the ratios that were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {key: value for key, value in headline.items() if key.endswith("llamacpp") and value is not None}
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.barh([key.removesuffix("_vs_llamacpp").replace("_", " ") for key in shown], list(shown.values()))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as llama.cpp")
    figure.savefig(path, dpi=130)
