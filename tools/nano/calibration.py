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

from tools.nano.drawing import render
from tools.nano.pools import EVALUATION_SEED
from tools.nano.scenes import sample_scene
from tools.nano.tasks import SINGLE

_FIRST_SEED = EVALUATION_SEED - 1_000_000


def write(folder: Path, count: int) -> Path:
    """Write `count` samples, tasks and languages in turn; return the JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    seed = _FIRST_SEED
    while len(lines) < count:
        seed += 1
        task = list(SINGLE)[seed % len(SINGLE)]
        language = ("en", "zh")[seed // len(SINGLE) % 2]
        scene = sample_scene(seed)
        dialogue = SINGLE[task][0](random.Random(f"calibrate-{seed}"), scene, language)
        if dialogue is None or len(dialogue.turns) > 1 or "<ref>" in dialogue.turns[0].question:
            continue  # the format has one question in plain words
        name = f"{seed}.png"
        render(scene).save(folder / name)
        turn = dialogue.turns[0]
        lines.append(json.dumps({"image": name, "prompt": turn.question, "answer": turn.answer}, ensure_ascii=False))
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    print(write(options.folder, options.count))


if __name__ == "__main__":
    main()
