"""Questions about scenes that were never trained on, and how answers to them are scored.

`python -m tools.nano.evaluation CHECKPOINT|FOLDER/language.pt [--count N]` asks PyTorch; benchmarks/accuracy.py asks
bundles the same questions. An answer is scored by its raw text, so both ways go through one scorer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from qwenvl_edge.families.boxes import Markup, MarkupReader
from tools.nano.drawing import render
from tools.nano.pools import EVALUATION_SEED
from tools.nano.scenes import Box, Scene, change_scene, sample_scene
from tools.nano.several_tasks import ground_in, same, what_changed, which
from tools.nano.tasks import SINGLE, Dialogue

LANGUAGES = ("en", "zh")
PAIR_TASKS = ("same", "changed", "which", "ground_in")
TASKS = (*SINGLE, *PAIR_TASKS)
ATTRIBUTES = ("colour", "kind", "count", "yes_no")
MULTI_PICTURE = ("same", "changed", "which")

Answerer = Callable[[Dialogue, Sequence[Image.Image]], str]  # the last turn's answer, with markup


@dataclass(frozen=True)
class Case:
    """A dialogue and the pictures that it is about."""

    dialogue: Dialogue
    scenes: tuple[Scene, ...]

    def pictures(self) -> list[Image.Image]:
        """The rendered pictures."""
        return [render(scene) for scene in self.scenes]


def pair_case(task: str, seed: int, language: str) -> Case | None:
    """A case of one of PAIR_TASKS; None where the seed's pictures give none. Further pictures have seeds far above."""
    rng = random.Random(f"ask-{task}-{seed}")
    first = sample_scene(seed, (1, 3), 0.2)
    if task in ("same", "changed"):
        second, change = change_scene(first, seed)
        if change.what == "none" and rng.random() < 0.5 * (task == "changed"):
            return None
        return Case((same if task == "same" else what_changed)(rng, change, language), (first, second))
    scenes = [first, *(sample_scene(seed + k * 10_000_000, (1, 3), 0.45) for k in range(1, rng.choice((2, 2, 3))))]
    dialogue = (which if task == "which" else ground_in)(rng, scenes, language)
    return Case(dialogue, tuple(scenes)) if dialogue else None


def cases(task: str, count: int, language: str) -> Iterator[Case]:
    """`count` cases of a task; both languages are asked about the same scenes."""
    seed, made = EVALUATION_SEED + 1_000_000 * TASKS.index(task), 0
    while made < count:
        seed += 1
        if task in PAIR_TASKS:
            case = pair_case(task, seed, language)
        else:
            scene = sample_scene(seed)
            dialogue = SINGLE[task][0](random.Random(f"ask-{task}-{seed}"), scene, language)
            case = Case(dialogue, (scene,)) if dialogue else None
        if case:
            made += 1
            yield case


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def read_answer(raw: str) -> tuple[str, list[Box]]:
    """Clean text, and boxes (a quad gives the box around it) in fractions of the picture."""
    reader = MarkupReader(Markup())
    text = reader.feed(raw) + reader.finish()
    boxes = []
    for shape in reader.shapes:
        xs, ys = [p[0] / 1000 for p in shape.points], [p[1] / 1000 for p in shape.points]
        boxes.append((min(xs), min(ys), max(xs), max(ys)))
    return text.strip(), boxes


@dataclass(frozen=True)
class Score:
    """1 or 0 for right or wrong, and the mean IoU where boxes were asked for."""

    right: float
    iou: float | None = None


def score(dialogue: Dialogue, raw: str) -> Score:
    """Texts must be equal; of boxes there must be as many as there are, each at IoU 0.5 or more with its own."""
    text, boxes = read_answer(raw)
    wanted: list[Box] = dialogue.truth.get("boxes", [])
    if not wanted:
        return Score(float(text == dialogue.truth["text"]))
    left, matched = list(boxes), []
    for box in wanted:
        best = max(left, key=lambda other: iou(box, other), default=None)
        matched.append(iou(box, best) if best else 0.0)
        if best:
            left.remove(best)
    right = len(boxes) == len(wanted) and min(matched) >= 0.5
    if "text" in dialogue.truth:
        right = right and text == dialogue.truth["text"]
    return Score(float(right), float(np.mean(matched)))


Results = dict[str, dict[str, dict[str, Any]]]  # task -> language -> {"right", "iou", "count", "marks"}


def evaluate(
    answer: Answerer, count: int, tasks: Sequence[str] = TASKS, progress: Callable[[str], None] = print
) -> Results:
    """Ask `count` questions a task and language; "marks" are 1 or 0, question by question."""
    return evaluate_all({"": answer}, count, tasks, progress)[""]


def evaluate_all(
    answerers: Mapping[str, Answerer],
    count: int,
    tasks: Sequence[str] = TASKS,
    progress: Callable[[str], None] = print,
) -> dict[str, Results]:
    """Ask several the same questions; each picture is drawn once for all of them."""
    results: dict[str, Results] = {name: {task: {} for task in tasks} for name in answerers}
    for task in tasks:
        for language in LANGUAGES:
            scores: dict[str, list[Score]] = {name: [] for name in answerers}
            for case in cases(task, count, language):
                pictures = case.pictures()
                for name, answer in answerers.items():
                    scores[name].append(score(case.dialogue, answer(case.dialogue, pictures)))
            for name, each in scores.items():
                results[name][task][language] = _entry(each)
        for name, result in results.items():
            told = (
                f"{k} {v['right']:.3f}" + (f" (IoU {v['iou']:.3f})" if "iou" in v else "")
                for k, v in result[task].items()
            )
            progress(f"{name} {task:<12}".lstrip() + "  ".join(told))
    return results


def _entry(scores: Sequence[Score]) -> dict[str, Any]:
    marks = [int(s.right) for s in scores]
    overlaps = [s.iou for s in scores if s.iou is not None]
    entry: dict[str, Any] = {"right": float(np.mean(marks)), "count": float(len(marks)), "marks": marks}
    return entry | ({"iou": float(np.mean(overlaps))} if overlaps else {})


def headline(results: Results) -> dict[str, float]:
    """The figures that the project promises, over both languages."""

    def mean(tasks: Sequence[str], key: str, languages: Sequence[str] = LANGUAGES) -> float:
        return float(np.mean([results[t][lang][key] for t in tasks if t in results for lang in languages]))

    gaps = [results[t]["en"]["right"] - results[t]["zh"]["right"] for t in results]
    figures = {
        "box_acc50": mean(["ground"], "right"),
        "box_miou": mean(["ground"], "iou"),
        "attributes": mean(ATTRIBUTES, "right"),
        "text_exact": mean(["read"], "right"),
        "multi_picture": mean(MULTI_PICTURE, "right"),
        "chinese_gap_points": float(np.mean(gaps)) * 100,
    }
    return {k: round(v, 4) for k, v in figures.items()}


def main() -> None:
    """Evaluate a checkpoint, or the weights of a training run that is still going on."""
    import argparse
    import json
    from pathlib import Path

    import torch

    from qwenvl_edge_export.checkpoint.reader import Checkpoint
    from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
    from tools.nano.answerers import TorchAnswerer
    from tools.nano.model import new_model
    from tools.nano.sequences import Composer
    from tools.nano.vocabulary import Codec

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    options = parser.parse_args()
    folder = options.source if options.source.is_dir() else options.source.parent
    codec = Codec(folder / "qwen.tiktoken")
    if options.source.is_dir():
        opened = Checkpoint.open(options.source)
        model = QwenVLNetwork.load(opened.family.config, opened.tensor)
    else:
        model = new_model(codec.ranks, seed=0)
        saved = torch.load(options.source, weights_only=True)["module"]
        model.load_state_dict({k[6:]: v for k, v in saved.items() if k.startswith("model.")})
    composer = Composer(codec, model.config.vision.n_queries)
    print(json.dumps(headline(evaluate(TorchAnswerer(model, composer), options.count, options.tasks))))


if __name__ == "__main__":
    main()
