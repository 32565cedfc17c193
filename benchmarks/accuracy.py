"""Right answers of the nano model on scenes that were never trained on, in every precision and in PyTorch.

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

import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the scenes and the scoring live in tools/nano

import numpy as np
from common import arguments, conditions, finish, needed_bundle

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.manifest import FLOAT_CACHE, MANIFEST_NAME
from tools.nano.answerers import EngineAnswerer, TorchAnswerer
from tools.nano.evaluation import TASKS, Answerer, Results, evaluate, evaluate_all, headline

ROOT = Path(__file__).parent.parent
NANO = ROOT / "models" / "nano"
PRECISIONS = ("fp32", "int8", "int8-kv8", "w8a8", "int4", "int4-rtn")
KV8 = "-kv8"
MAX_CONTEXT = 1024  # of the standard dialect, whose cost follows it
CALIBRATED = ("int4", "w8a8")
SAMPLES = 64


def export_all(folder: Path, precisions: list[str]) -> dict[str, Path]:
    """Export the nano model anew, once a precision; a bundle beyond its limits is measured all the same."""
    from qwenvl_edge_export.export import export
    from qwenvl_edge_export.options import ExportPrecision
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


def ask(task: str, bundles: dict[str, Path], count: int, threads: int, kept: Path | None) -> dict[str, Results]:
    """Every bundle's answers to one task, in a process of its own; what an earlier run left in `kept` is taken over."""
    path = kept / f"{task}.json" if kept else None
    if path is not None and path.exists():
        found: dict[str, Results] = json.loads(path.read_text(encoding="utf-8"))
        return found
    answerers = {name: EngineAnswerer(open_engine(path, threads)) for name, path in bundles.items()}
    results = evaluate_all(answerers, count, (task,), lambda line: print(line, file=sys.stderr, flush=True))
    if path is not None:
        partial_file = path.with_suffix(".partial")
        partial_file.write_text(json.dumps(results), encoding="utf-8")
        partial_file.rename(path)
    return results


def ask_all(
    bundles: dict[str, Path], count: int, processes: int | None, threads: int, folder: Path | None
) -> dict[str, Results]:
    """Every bundle's answers to every task, several tasks at a time."""
    results: dict[str, Results] = {name: {} for name in bundles}
    kept = folder / _work(bundles, count) if folder else None
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    asking = partial(ask, bundles=bundles, count=count, threads=threads, kept=kept)
    # Spawned, not forked: ONNX Runtime's threads do not survive a fork.
    with ProcessPoolExecutor(processes or default_processes(), get_context("spawn")) as pool:
        for answered in pool.map(asking, TASKS):
            for name, result in answered.items():
                results[name] |= result
    return results


def _work(bundles: dict[str, Path], count: int) -> str:
    """A name for these questions to these bundles."""
    manifests = [(name, (path / MANIFEST_NAME).read_text(encoding="utf-8")) for name, path in bundles.items()]
    return hashlib.sha256(json.dumps([count, manifests]).encode()).hexdigest()[:16]


def default_processes() -> int:
    """One a processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def losses(result: Results, reference: Results) -> dict[str, dict[str, float]]:
    """Points that each task loses against the reference, both languages together.

    The questions are the same, so only those matter that one answers rightly and the other not: "lost" and "gained".
    "error" is the standard error of the mean difference of such pairs, in points.
    """
    found = {}
    for task in TASKS:
        right, wanted = (np.concatenate([e["marks"] for e in each[task].values()]) for each in (result, reference))
        change = wanted - right
        found[task] = {
            "points": float(change.mean()) * 100,
            "error": float(change.std() / np.sqrt(len(change))) * 100,
            "lost": int((change > 0).sum()),
            "gained": int((change < 0).sum()),
        }
    return found


def without_marks(results: Results) -> Results:
    """The figures alone: hundreds of thousands of single marks are no result."""
    return {
        task: {language: {k: v for k, v in entry.items() if k != "marks"} for language, entry in each.items()}
        for task, each in results.items()
    }


def torch_answerer(checkpoint: Path) -> Answerer:
    """PyTorch on the checkpoint that the bundles were made from."""
    from qwenvl_edge_export.checkpoint.reader import Checkpoint
    from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
    from tools.nano.sequences import Composer
    from tools.nano.vocabulary import Codec

    opened = Checkpoint.open(checkpoint)
    model = QwenVLNetwork.load(opened.family.config, opened.tensor)
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
    figure.legend(loc="outside right upper")
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
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep finished tasks there, and continue after them"
    )
    options = parser.parse_args()
    before = conditions()
    given = {name or "fp32": Path(path) for name, _, path in (each.rpartition("=") for each in options.bundles)}
    for bundle in given.values():
        needed_bundle(bundle)
    bundles = given or export_all(ROOT / "out" / "accuracy", options.precisions)
    results = ask_all(bundles, options.count, options.processes, options.threads, options.keep)
    if options.checkpoint:
        print("--- PyTorch", file=sys.stderr)
        answer_torch = torch_answerer(options.checkpoint)
        results["pytorch"] = evaluate(answer_torch, options.count, progress=lambda line: print(line, file=sys.stderr))
    print(table(results))
    if options.plot:
        plot(options.plot, results)
    figures: dict[str, Any] = {name: headline(result) for name, result in results.items()}
    details: dict[str, Any] = {"count_per_task_and_language": options.count}
    if "fp32" in results:
        details["points_lost"] = {name: losses(result, results["fp32"]) for name, result in results.items()}
        for name, lost in details["points_lost"].items():
            worst = max(lost, key=lambda task: lost[task]["points"])
            mean = np.mean([each["points"] for each in lost.values()])
            figures[name] |= {"worst_loss_points": lost[worst]["points"], "worst_loss_error": lost[worst]["error"]}
            figures[name] |= {"mean_loss_points": float(mean)}
            print(
                f"{name:<10} loses {lost[worst]['points']:.1f} points at most ({worst}, standard error "
                f"{lost[worst]['error']:.1f}), {mean:.2f} on average"
            )
    details["tasks"] = {name: without_marks(result) for name, result in results.items()}
    finish(options, before, figures, details)


if __name__ == "__main__":
    main()
