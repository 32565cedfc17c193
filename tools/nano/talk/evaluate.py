"""Figures on scenes that were never trained on: `python -m tools.nano.talk.evaluate BUNDLE|RUN [--count N] [--small]`.

A bundle is asked through the engine as a user would; of a training in RUN the weights so far are asked in PyTorch.
Prints the table of figures with floor and goal beside them, and writes --save FILE as JSON. --small: a tenth of it.
--processes N asks N parts at a time, each with one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tools.nano.evaluation import iou
from tools.nano.talk.answering import Answer, open_answerer
from tools.nano.talk.cases import LANGUAGES, PARTS, Case, cases
from tools.nano.talk.icons import prepare
from tools.nano.talk.turns import Places, Turn

COUNT = 300


@dataclass(frozen=True)
class Column:
    """One figure of the table: which parts of the evaluation it is the mean of, what is counted, floor and goal."""

    parts: tuple[str, ...]
    key: str
    floor: float
    goal: float


COLUMNS: Mapping[str, Column] = {
    "boxes, IoU 0.5": Column(("where",), "right", 0.93, 0.96),
    "boxes, mean IoU": Column(("where",), "iou", 0.78, 0.84),
    "colour, kind, yes-no": Column(("colour", "kind", "exists"), "right", 0.94, 0.97),
    "count": Column(("count",), "right", 0.88, 0.93),
    "text to the letter": Column(("read",), "right", 0.88, 0.93),
    "caption: every thing, nothing else": Column(("caption",), "right", 0.70, 0.85),
    "several pictures": Column(("same", "changed", "which", "in_picture"), "right", 0.93, 0.96),
    "wordings kept out of training": Column(("new wordings",), "right", 0.80, 0.90),
    "a style kept out": Column(("new style",), "right", 0.55, 0.75),
}
LOSS_FLOOR, LOSS_GOAL = 4.0, 2.0  # points that later turns may lose
LATER = "loss in the third turn and later, points"


@dataclass(frozen=True)
class Score:
    """1 or 0 for right or wrong, and the mean IoU where boxes were asked for."""

    right: float
    iou: float | None = None


def score(turn: Turn, answer: Answer) -> Score:
    """Compare an answer with a turn's truth.

    Texts must be equal, in captions the things and their number; of boxes there must be as many as there are, each at
    IoU 0.5 or more with its own, and a point must lie in its box.
    """
    wanted = turn.truth.get("boxes", ())
    if not wanted:
        text = turn.truth["text"]
        same = _things(answer.text) == _things(text) if turn.task == "caption" else answer.text.strip() == text
        return Score(float(same and not answer.boxes))
    if any(isinstance(part, Places) and part.point for part in turn.answer):
        hit = len(answer.points) == len(wanted) and all(
            box[0] <= x <= box[2] and box[1] <= y <= box[3] for (x, y), box in zip(answer.points, wanted, strict=True)
        )
        return Score(float(hit or (not answer.points and _matched(wanted, answer.boxes)[0])))
    right, overlap = _matched(wanted, answer.boxes)
    if "text" in turn.truth:
        right = right and turn.truth["text"] in answer.labels
    return Score(float(right), overlap)


def _things(caption: str) -> list[str]:
    """The things that a caption names, sorted; first letters and full stops left out."""
    text = caption.strip().rstrip(".。").replace(" and ", ", ").replace("和", "、")
    parts = [part.strip() for part in (text.split("、") if "、" in text else text.split(", "))]
    return sorted(part[:1].lower() + part[1:] for part in parts)


def _matched(wanted: Sequence[tuple[float, ...]], boxes: Sequence[tuple[float, ...]]) -> tuple[bool, float]:
    left, found = list(boxes), []
    for box in wanted:
        best = max(left, key=lambda other: iou(box, other), default=None)  # type: ignore[arg-type]
        found.append(iou(box, best) if best else 0.0)  # type: ignore[arg-type]
        if best:
            left.remove(best)
    return len(boxes) == len(wanted) and min(found) >= 0.5, float(np.mean(found))


Results = dict[str, dict[str, dict[str, float]]]  # part -> language -> {"right", "iou", "count"}


def evaluate(
    answer: Callable[[Case], Answer],
    made: Callable[[str, str], Sequence[Case]],
    parts: Sequence[str] = PARTS,
    progress: Callable[[str], None] = print,
) -> Results:
    """Ask all cases that `made(part, language)` gives."""
    results: Results = {}
    for part in parts:
        results[part] = {}
        for language in LANGUAGES:
            scores = [score(case.turn, answer(case)) for case in made(part, language)]
            overlaps = [each.iou for each in scores if each.iou is not None]
            entry = {"right": float(np.mean([each.right for each in scores])), "count": float(len(scores))}
            results[part][language] = entry | ({"iou": float(np.mean(overlaps))} if overlaps else {})
        progress(f"{part:<14}" + "  ".join(f"{k} {v['right']:.3f}" for k, v in results[part].items()))
    return results


def evaluate_source(
    source: Path, sprites: Path, count: int, parts: Sequence[str], threads: int | None = None
) -> Results:
    """Ask a bundle or a training `count` questions of each part and language."""
    answer = open_answerer(source, threads)
    return evaluate(answer, lambda part, language: list(cases(part, count, language, sprites)), parts, _tell)


def figures(results: Results) -> dict[str, float]:
    """The figures of the table, over both languages; those whose parts were asked."""

    def mean(parts: Sequence[str], key: str) -> float:
        return float(np.mean([results[part][lang][key] for part in parts for lang in LANGUAGES]))

    found = {
        name: mean(column.parts, column.key)
        for name, column in COLUMNS.items()
        if all(part in results for part in column.parts)
    }
    if "first turn" in results and "later turn" in results:
        found[LATER] = 100 * (mean(("first turn",), "right") - mean(("later turn",), "right"))
    return {name: round(value, 4) for name, value in found.items()}


def table(found: Mapping[str, float]) -> str:
    """The figures with floor and goal as lines of text."""
    lines = [f"{'':<44}{'measured':>9}{'floor':>8}{'goal':>8}"]
    for name, value in found.items():
        if name == LATER:
            reached = "goal" if value <= LOSS_GOAL else "floor" if value <= LOSS_FLOOR else "below the floor"
            lines.append(f"{name:<44}{value:>9.1f}{LOSS_FLOOR:>8.0f}{LOSS_GOAL:>8.0f}  {reached}")
            continue
        column = COLUMNS[name]
        reached = "goal" if value >= column.goal else "floor" if value >= column.floor else "below the floor"
        lines.append(f"{name:<44}{value:>9.3f}{column.floor:>8.2f}{column.goal:>8.2f}  {reached}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a bundle, or the folder of a training")
    parser.add_argument("--work", type=Path, help="where the sprites are, if not beside SOURCE")
    parser.add_argument("--count", type=int, default=COUNT, help="questions of a part and language")
    parser.add_argument("--small", action="store_true", help="a tenth of the count")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--save", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    sprites = prepare(options.work or options.source.parent)
    count = max(1, options.count // 10) if options.small else options.count
    if options.processes > 1:
        with get_context("spawn").Pool(options.processes) as pool:
            ask = partial(evaluate_source, options.source, sprites, count, threads=1)
            results = {
                name: part for each in pool.imap(ask, [[p] for p in options.parts]) for name, part in each.items()
            }
    else:
        results = evaluate_source(options.source, sprites, count, options.parts)
    found = figures(results)
    print(table(found))
    if options.save:
        content = {"count": count, "figures": found, "parts": results}
        options.save.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
