"""What the nano model answers, on scenes that were never trained on, in every precision and in PyTorch.

    python benchmarks/accuracy.py [--precisions fp32 int8 ...] [--count 500] [--processes 2] [--json FILE]
    python benchmarks/accuracy.py fp32=out/nano [int8=out/nano-int8 ...] [--checkpoint models/nano]

Without bundles, models/nano is exported to out/accuracy/ in every precision that runs on a CPU: "int4" and "w8a8" are
calibrated on 64 samples of its own kind, "int4-rtn" is rounded to nearest. "-kv8" stands for an int8 KV cache, which is
asked in the standard dialect, as TensorRT plans compute it.

Each task is asked `--count` times in English and as often in Chinese about the same scenes. Text answers must be equal
to the letter; of boxes there must be as many as there are, each at IoU 0.5 or more. Chance is one in two for yes_no,
side and same, one in two or three for which, and far lower elsewhere.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the scenes and the scoring live in tools/nano

import numpy as np
from common import arguments, conditions, finish

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.onnxruntime import STANDARD, OnnxRuntimeBackend
from qwenvl_edge.bundle import FLOAT_CACHE, Bundle
from tools.nano.answerers import EngineAnswerer, TorchAnswerer
from tools.nano.evaluation import TASKS, Answerer, Results, evaluate, headline

ROOT = Path(__file__).parent.parent
NANO = ROOT / "models" / "nano"
PRECISIONS = ("fp32", "int8", "int8-kv8", "w8a8", "int4", "int4-rtn")
KV8 = "-kv8"
MAX_CONTEXT = 1024  # of the standard dialect, whose cost follows it
CALIBRATED = ("int4", "w8a8")
SAMPLES = 64


def export_all(folder: Path, precisions: list[str]) -> dict[str, Path]:
    """Export the nano model anew, once a precision; a bundle beyond its limits is measured all the same."""
    from qwenvl_edge_export.exporter import export
    from qwenvl_edge_export.precision import ExportPrecision
    from tools.nano.calibration import write

    samples = write(folder / "samples", SAMPLES)
    for name in precisions:
        print(f"exporting {name}", file=sys.stderr)
        cache = "int8" if name.endswith(KV8) else "float"
        chosen = ExportPrecision.choose(name.removesuffix("-rtn").removesuffix(KV8), kv_cache=cache)
        calibration = samples if name in CALIBRATED else False
        export(NANO, folder / name, precision=chosen, calibration=calibration, force=True, allow_loss=True)
    return {name: folder / name for name in precisions}


def open_engine(path: Path, threads: int) -> QwenVLEngine:
    """A bundle's engine; one with an int8 cache runs in the dialect that has it."""
    bundle = Bundle.open(path)
    if bundle.manifest.precision.kv_cache == FLOAT_CACHE:
        return QwenVLEngine(bundle, threads=threads)
    backend = OnnxRuntimeBackend(bundle, threads=threads, dialect=STANDARD)
    return QwenVLEngine(bundle, backend=backend, max_context=MAX_CONTEXT)


def ask(job: tuple[str, Path, str], count: int, threads: int) -> tuple[str, Results]:
    """One bundle's answers to one task, in a process of its own."""
    name, path, task = job
    return name, evaluate(
        EngineAnswerer(open_engine(path, threads)), count, (task,), lambda line: print(name, line, file=sys.stderr)
    )


def ask_all(bundles: dict[str, Path], count: int, processes: int | None, threads: int) -> dict[str, Results]:
    """Every bundle's answers to every task, several at a time."""
    results: dict[str, Results] = {name: {} for name in bundles}
    jobs = [(name, path, task) for task in TASKS for name, path in bundles.items()]
    # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
    with ProcessPoolExecutor(processes or default_processes(), get_context("spawn")) as pool:
        for name, answered in pool.map(partial(ask, count=count, threads=threads), jobs):
            results[name] |= answered
    return results


def default_processes() -> int:
    """One a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def losses(result: Results, reference: Results) -> dict[str, float]:
    """Points that each task loses against the reference, both languages together."""
    right = (
        {task: np.mean([e["right"] for e in each[task].values()]) for task in TASKS} for each in (reference, result)
    )
    before, after = right
    return {task: float(before[task] - after[task]) * 100 for task in TASKS}


def torch_answerer(checkpoint: Path) -> Answerer:
    """PyTorch on the checkpoint that the bundles were made from."""
    from qwenvl_edge_export.checkpoint import Checkpoint, load_model
    from tools.nano.sequences import Composer
    from tools.nano.vocabulary import Codec

    model = load_model(Checkpoint.open(checkpoint))
    return TorchAnswerer(model, Composer(Codec(checkpoint / "qwen.tiktoken"), model.config.vision.n_queries))


def table(results: dict[str, Results]) -> str:
    """Tasks down, sources across; English and Chinese beside each other."""
    lines = [f"{'task':<12}" + "".join(f"{name:>34}" for name in results)]
    for task in TASKS:
        cells = []
        for result in results.values():
            entry = result[task]
            overlap = f" IoU {(entry['en']['iou'] + entry['zh']['iou']) / 2:.2f}" if "iou" in entry["en"] else ""
            cells.append(f"en {entry['en']['right']:.3f} zh {entry['zh']['right']:.3f}" + overlap)
        lines.append(f"{task:<12}" + "".join(f"{cell:>34}" for cell in cells))
    return "\n".join(lines)


def plot(path: Path, results: dict[str, Results]) -> None:
    """Bars of every task, both languages together."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(results)
    for i, (name, result) in enumerate(results.items()):
        right = [np.mean([result[task][lang]["right"] for lang in ("en", "zh")]) for task in TASKS]
        axes.bar(np.arange(len(TASKS)) + i * width, right, width * 0.95, label=name)
    axes.set_xticks(np.arange(len(TASKS)) + 0.4 - width / 2, TASKS, rotation=30, ha="right")
    axes.set_ylabel("right answers")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Ask everyone, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE", help="a bundle and the name of its column")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, help="what to export where no bundle is given")
    parser.add_argument("--checkpoint", type=Path, help="also ask PyTorch on this checkpoint")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--processes", type=int, help="how many ask at once (default: one a processor)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    options = parser.parse_args()
    before = conditions()
    given = {name or "fp32": Path(path) for name, _, path in (each.rpartition("=") for each in options.bundles)}
    bundles = given or export_all(ROOT / "out" / "accuracy", options.precisions)
    results = ask_all(bundles, options.count, options.processes, options.threads)
    if options.checkpoint:
        print("--- PyTorch", file=sys.stderr)
        answer_torch = torch_answerer(options.checkpoint)
        results["pytorch"] = evaluate(answer_torch, options.count, progress=lambda line: print(line, file=sys.stderr))
    print(table(results))
    if options.plot:
        plot(options.plot, results)
    figures: dict[str, Any] = {name: headline(result) for name, result in results.items()}
    details: dict[str, Any] = {"count_per_task_and_language": options.count, "tasks": results}
    if "fp32" in results:
        details["points_lost"] = {name: losses(result, results["fp32"]) for name, result in results.items()}
        for name, lost in details["points_lost"].items():
            worst = max(lost, key=lost.__getitem__)
            figures[name]["worst_loss_points"] = lost[worst]
            mean = np.mean(list(lost.values()))
            print(f"{name:<10} loses {lost[worst]:.1f} points at most ({worst}), {mean:.1f} on average")
    finish(options, before, figures, details)


if __name__ == "__main__":
    main()
