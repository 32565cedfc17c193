"""The native sampler beside PyTorch's and NumPy's chains on one row of 151,936 logits, same process, same row.

    python benchmarks/sampler.py [--top-p 0.8] [--repeats 50] [--json FILE] [--plot FILE]

The row looks like a language model's: a broad floor and a few dozen likely tokens. PyTorch's chain is Hugging Face's:
sort, softmax, cumulative sum, scatter, softmax, multinomial. NumPy's partitions first and sorts only what top-p can
keep. Repeats alternate; a ratio is the median over pairs of neighbours, with quartiles.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import arguments, conditions, finish, interleaved, ratio, spread

from qwenvl_edge.decoding.sampler import Sampler
from qwenvl_edge.inputs.options import SamplingParams

VOCABULARY = 151_936
OTHERS: dict[str, dict[str, Any]] = {
    "draw": {},
    "top-k 50": {"top_k": 50},
    "min-p": {"min_p": 0.05},
    "typical": {"typical_p": 0.9},
    "penalty, top-p": {"repetition_penalty": 1.1, "top_p": 0.8},
}

Logits = npt.NDArray[np.float32]


def make_row(seed: int) -> Logits:
    """[V] float32."""
    generator = np.random.default_rng(seed)
    row = generator.normal(0, 2, VOCABULARY)
    row[generator.integers(0, VOCABULARY, 40)] += generator.normal(12, 3, 40)
    return row.astype(np.float32)


def torch_top_p(row: torch.Tensor, top_p: float) -> int:
    """Hugging Face's TopPLogitsWarper and a draw."""
    ordered, order = torch.sort(row, descending=False)
    removed = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    removed[-1:] = False
    mask = removed.scatter(0, order, removed)
    return int(torch.multinomial(row.masked_fill(mask, -torch.inf).softmax(-1), 1))


def numpy_top_p(row: Logits, top_p: float, generator: np.random.Generator) -> int:
    """Softmax of the row; a partial sort that grows until it holds the nucleus; a draw from it."""
    weights = np.exp(row - row.max())
    target = top_p * weights.sum()
    size = 256
    while True:
        best = np.argpartition(weights, -size)[-size:] if size < len(weights) else np.arange(len(weights))
        best = best[np.argsort(-weights[best])]
        mass = np.cumsum(weights[best])
        if mass[-1] >= target or size >= len(weights):
            break
        size *= 8
    kept = int(np.searchsorted(mass, target)) + 1
    return int(best[np.searchsorted(mass[:kept], generator.random() * mass[min(kept, len(mass)) - 1])])


def check(row: Logits, top_p: float) -> None:
    """The chains must keep the same tokens before their speed is compared."""
    ours, _ = Sampler(SamplingParams(top_p=top_p, seed=0)).distribution(row)
    generator = np.random.default_rng(0)
    drawn = {torch_top_p(torch.from_numpy(row), top_p) for _ in range(50)}
    drawn |= {numpy_top_p(row, top_p, generator) for _ in range(50)}
    if not drawn <= set(ours.tolist()):
        sys.exit("The chains keep different tokens, so that a comparison of speed would mean nothing.")


def measure(row: Logits, top_p: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of ours and theirs."""
    tensor = torch.from_numpy(row)
    generator = np.random.default_rng(0)
    greedy = Sampler(SamplingParams(do_sample=False))
    nucleus = Sampler(SamplingParams(top_p=top_p, seed=0))
    calls: dict[str, Callable[[], Any]] = {
        "read the row (max)": row.max,
        "greedy": lambda: greedy.sample(row),
        "top-p": lambda: nucleus.sample(row),
        "NumPy top-p": lambda: numpy_top_p(row, top_p, generator),
        "PyTorch top-p": lambda: torch_top_p(tensor, top_p),
    }
    for name, settings in OTHERS.items():
        sampler = Sampler(SamplingParams(seed=0, **settings))
        calls[name] = lambda sampler=sampler: sampler.sample(row, [1, 2, 3])
    return interleaved(calls, repeats, before=row.sum)  # each call finds the row in the cache


def draw(path: Path, seconds: dict[str, list[float]]) -> None:
    """Microseconds a token, by setting and library."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    names = list(seconds)[::-1]
    figures = [spread(seconds[name])["median"] * 1e6 for name in names]
    axes.barh(
        names, figures, color=["#888" if name.startswith(("NumPy", "PyTorch", "read")) else "C0" for name in names]
    )
    axes.set_xscale("log")
    axes.set_xlabel(f"µs a token, {VOCABULARY:,} logits")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print the table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--top-p", type=float, default=0.8)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    before = conditions()
    row = make_row(0)
    check(row, options.top_p)
    seconds = measure(row, options.top_p, options.repeats)
    figures = {name: spread([s * 1e6 for s in samples]) for name, samples in seconds.items()}
    print(f"{'':20} {'µs':>9}   quartiles")
    for name, figure in figures.items():
        print(f"{name:20} {figure['median']:9.1f}   {figure['q25']:.1f} - {figure['q75']:.1f}")
    ratios = {
        "greedy_vs_read": ratio(seconds["read the row (max)"], seconds["greedy"]),
        "top_p_vs_torch": ratio(seconds["top-p"], seconds["PyTorch top-p"]),
        "top_p_vs_numpy": ratio(seconds["top-p"], seconds["NumPy top-p"]),
    }
    for name, figure in ratios.items():
        print(f"{name:20} {figure['median']:9.2f}   {figure['q25']:.2f} - {figure['q75']:.2f}")
    if options.plot:
        draw(options.plot, seconds)
    headline = {name: figure["median"] for name, figure in ratios.items()}
    headline |= {"greedy_us": figures["greedy"]["median"], "top_p_us": figures["top-p"]["median"]}
    finish(options, before, headline, {"us": figures, "ratios": ratios, "top_p": options.top_p})


if __name__ == "__main__":
    main()
