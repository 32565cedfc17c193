"""Calibration samples of the nano model's own kind: `qwenvl export models/nano OUT --precision int4 --calibrate FILE`.

    python -m tools.nano.calibration FOLDER [--count 64]

Writes pictures and FOLDER/samples.jsonl, questions with their right answers in both languages, about scenes that
evaluation never asks about.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tools.nano.evaluation import PAIR_TASKS, TASKS, Case, pair_case
from tools.nano.pools import EVALUATION_SEED
from tools.nano.scenes import sample_scene
from tools.nano.tasks import SINGLE

_FIRST_SEED = EVALUATION_SEED - 100_000_000  # the scenes of a pair may be 20,000,000 apart


def write(folder: Path, count: int) -> Path:
    """Write `count` samples, tasks and languages in turn; return the JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    seed = _FIRST_SEED
    while len(lines) < count:
        seed += 1
        case = _case(TASKS[seed % len(TASKS)], seed, ("en", "zh")[seed // len(TASKS) % 2])
        if case is None or len(case.dialogue.turns) > 1 or "<ref>" in case.dialogue.turns[0].question:
            continue  # the format has one question in plain words
        names = [f"{seed}-{i}.png" for i in range(len(case.scenes))]
        for name, picture in zip(names, case.pictures(), strict=True):
            picture.save(folder / name)
        turn = case.dialogue.turns[0]
        lines.append(json.dumps({"image": names, "prompt": turn.question, "answer": turn.answer}, ensure_ascii=False))
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _case(task: str, seed: int, language: str) -> Case | None:
    if task in PAIR_TASKS:
        return pair_case(task, seed, language)
    scene = sample_scene(seed)
    dialogue = SINGLE[task][0](random.Random(f"calibrate-{seed}"), scene, language)
    return Case(dialogue, (scene,)) if dialogue else None


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    print(write(options.folder, options.count))


if __name__ == "__main__":
    main()
