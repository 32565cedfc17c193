"""The native core's three benchmarks, several times in a row, and whether its goals held in every run.

    python benchmarks/core_runs.py [--runs 3] [--folder benchmarks/results]

Each run of tokenizer.py, sampler.py and image.py is a process of its own. FOLDER/core-three-runs.json takes the last
lines of all of them and FOLDER/NAME.json the whole result of the median run, by its figure that is closest to its goal.
Every other program on the machine should rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, conditions

# What the figure must reach: at least, or for the times and what they are compared with at most.
AT_LEAST = {
    "encode_vs_tiktoken": 6.0,
    "encode_vs_tokenizers": 8.0,
    "top_p_vs_torch": 20.0,
    "top_p_vs_numpy": 5.0,
    "vs_pillow": 3.0,
    "nv12_vs_pillow": 3.0,
}
AT_MOST = {"load_ms": 15.0, "load_mb": 8.0, "greedy_vs_read": 2.0}
NAMES = ("tokenizer", "sampler", "image")


def margins(headline: dict[str, float]) -> dict[str, float]:
    """By figure that has a goal: from 1 on it is reached."""
    found = {key: headline[key] / goal for key, goal in AT_LEAST.items() if key in headline}
    return found | {key: goal / headline[key] for key, goal in AT_MOST.items() if key in headline}


def run(name: str, folder: Path) -> dict[str, Any]:
    """The result file of one run."""
    path = folder / f"{name}.json"
    subprocess.run([sys.executable, Path(__file__).with_name(f"{name}.py"), "--json", path], check=True)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def main() -> None:
    """Run everything, write the files, say what was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    before = conditions()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.runs):
            for name in NAMES:
                results[name].append(run(name, Path(folder)))
    missed = []
    for name, found in results.items():
        ranked = sorted(found, key=lambda result: min(margins(result["headline"]).values()))
        middle = ranked[len(ranked) // 2]
        (options.folder / f"{name}.json").write_text(json.dumps(middle, indent=1, ensure_ascii=False) + "\n")
        worst = {key: min(margins(result["headline"])[key] for result in found) for key in margins(middle["headline"])}
        missed += [key for key, margin in worst.items() if margin < 1]
    report = {
        "conditions": before,
        "goals": {"at_least": AT_LEAST, "at_most": AT_MOST},
        "missed_in_a_run": missed,
        "headlines": {name: [result["headline"] for result in found] for name, found in results.items()},
    }
    (options.folder / "core-three-runs.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"runs": options.runs, "missed_in_a_run": missed}))


if __name__ == "__main__":
    main()
