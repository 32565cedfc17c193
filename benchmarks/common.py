"""Shared by all benchmarks: arguments, needed files, the machine's description, statistics, and writing results."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
VOCABULARY = Path(".cache/qwen.tiktoken")
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "pillow", "tiktoken", "tokenizers")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write conditions, figures and details to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures to FILE (.png)")
    return parser


def needed(path: Path, made_by: str) -> Path:
    """Return `path`, or end the program with one sentence that names the command which makes it."""
    if not path.exists():
        sys.exit(f'There is no "{path}"; make it with `{made_by}`.')
    return path


def needed_bundle(path: Path | str) -> Path:
    """Return the folder of a bundle, or end the program with one sentence if there is none."""
    path = Path(path)
    needed(path / "bundle.json", f"qwenvl export models/nano {path} --precision fp32")
    return path


def needed_vocabulary(path: Path) -> Path:
    """Return the file of Qwen's full vocabulary, or end the program with one sentence if it was not fetched."""
    return needed(path, f"python tools/fetch_vocabulary.py {path}")


def simd() -> str:
    """The widest vector instructions of this CPU that matter for the figures, such as "AVX-512 VNNI BF16, AMX"."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if "avx512f" in words:
        wide = "AVX-512" + " VNNI" * ("avx512_vnni" in words) + " BF16" * ("avx512_bf16" in words)
        return wide + ", AMX" * ("amx_int8" in words)
    return next((name for flag, name in (("avx2", "AVX2"), ("asimd", "NEON")) if flag in words), "none")


def conditions() -> dict[str, Any]:
    """Date, machine and package versions of a measurement."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "simd": simd(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
    }


def milliseconds(call: Callable[[], object]) -> float:
    """Run something once; return the time it took."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def interleaved(
    calls: dict[str, Callable[[], Any]], repeats: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every call, one repeat of each in turn after a warm-up; `before` runs before each, unmeasured."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            before()
            seconds[name].append(milliseconds(call) / 1e3)
    return seconds


def spread(samples: list[float]) -> dict[str, float]:
    """Median with the quartiles."""
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high), "n": len(samples)}


def percentiles(samples: list[float]) -> dict[str, float]:
    """The 10th, 50th, 90th and 99th percentile, and how far the 99th is from the median: the jitter."""
    values = dict(zip(("p10", "p50", "p90", "p99"), map(float, np.percentile(samples, [10, 50, 90, 99])), strict=True))
    return {**values, "jitter": values["p99"] - values["p50"], "n": len(samples)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """theirs / ours, pair by pair of interleaved repeats: above 1 means that ours is faster."""
    return spread([t / o for o, t in zip(ours, theirs, strict=True)])


def rounded(value: Any) -> Any:
    """Four significant digits, everywhere inside."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value


def finish(options: argparse.Namespace, before: dict[str, Any], headline: dict[str, Any], details: Any) -> None:
    """Write the JSON file if one is wanted, and print the headline figures as the last line."""
    headline = rounded(headline)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"conditions": before, "headline": headline, "details": rounded(details)}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(headline))


@contextlib.contextmanager
def running_threads(threads: Sequence[threading.Thread], stop: Callable[[], None]) -> Iterator[None]:
    """Start threads; at the end tell them to stop, and wait for them."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop()
        for thread in threads:
            thread.join()
