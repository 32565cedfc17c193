"""What the nano model answers, on scenes that were never trained on, in every precision and in PyTorch.

    python benchmarks/accuracy.py fp32=out/nano [int8=out/nano-int8 ...] [--checkpoint models/nano] [--count 500]

Each task is asked `--count` times in English and as often in Chinese about the same scenes. Text answers must be equal
to the letter; of boxes there must be as many as there are, each at IoU 0.5 or more.
Chance is one in two for yes_no, side and same, one in two or three for which, and far lower elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the scenes and the scoring live in tools/nano

from common import arguments, conditions, finish

from qwenvl_edge import QwenVLEngine
from tools.nano.answerers import EngineAnswerer, TorchAnswerer
from tools.nano.evaluation import TASKS, Answerer, Results, evaluate, headline


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
    import numpy as np
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
    parser.add_argument("bundles", nargs="+", metavar="NAME=BUNDLE", help="a bundle and the name of its column")
    parser.add_argument("--checkpoint", type=Path, help="also ask PyTorch on this checkpoint")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    before = conditions()
    results: dict[str, Results] = {}
    for given in options.bundles:
        name, _, path = given.rpartition("=")
        print(f"--- {name or 'fp32'}: {path}", file=sys.stderr)
        answer = EngineAnswerer(QwenVLEngine(path, threads=options.threads))
        results[name or "fp32"] = evaluate(answer, options.count, progress=lambda line: print(line, file=sys.stderr))
    if options.checkpoint:
        print("--- PyTorch", file=sys.stderr)
        answer_torch = torch_answerer(options.checkpoint)
        results["pytorch"] = evaluate(answer_torch, options.count, progress=lambda line: print(line, file=sys.stderr))
    print(table(results))
    if options.plot:
        plot(options.plot, results)
    figures: dict[str, Any] = {name: headline(result) for name, result in results.items()}
    finish(options, before, figures, {"count_per_task_and_language": options.count, "tasks": results})


if __name__ == "__main__":
    main()
