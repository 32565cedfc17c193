"""models/nano as a whole: `python -m tools.nano.make WORK TARGET` renders, trains, and writes the checkpoint TARGET.

Every step leaves its result in WORK and is skipped when that is there; training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.nano import train_language, train_vision
from tools.nano.curves import plot_curves
from tools.nano.pools import TRAINING, load_pool
from tools.nano.save import write_checkpoint
from tools.nano.vocabulary import write as write_vocabulary


def main(work: Path, target: Path) -> None:
    """Run the steps that are not done yet."""
    for pool in TRAINING:
        load_pool(pool, work)
    if not (work / "qwen.tiktoken").exists():
        write_vocabulary(work / "qwen.tiktoken")
    train_vision.main(work)
    train_language.main(work)
    write_checkpoint(work, target)
    plot_curves(work, target / "training.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    main(arguments.work, arguments.target)
