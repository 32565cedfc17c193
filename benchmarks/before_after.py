"""One benchmark of two checkouts in turn: what a change of the code changed, on one machine in one run.

    python benchmarks/before_after.py OTHER [--turns 5] [--json FILE] -- latency.py out/nano --cases none --requests 0

OTHER is a checkout with a virtual environment of its own in .venv. Both run their own copy of the benchmark in their
own folder, so a relative path in its arguments is looked up in each. The figures are those of the benchmark's last
line and, if its own arguments hold --json FILE, the medians among its details. A ratio is this checkout's over the
other's in the same turn, as the median over turns with the least and the greatest. Which of the two begins changes from
turn to turn. Every other program on the machine should rest.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import arguments, conditions, finish, needed

HERE = Path(__file__).resolve().parent.parent


def headline(checkout: Path, command: list[str]) -> dict[str, float]:
    """The numbers in the last line of a checkout's benchmark, and the medians in the file that it writes."""
    python = needed(checkout / ".venv" / "bin" / "python", f"make -C {checkout} setup")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, Path("benchmarks") / command[0], *command[1:]],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    last = json.loads(run.stdout.splitlines()[-1])
    found = {name: value for name, value in last.items() if isinstance(value, int | float)}
    if "--json" in command:
        result = checkout / command[command.index("--json") + 1]
        details = json.loads(result.read_text(encoding="utf-8"))["details"]
        found |= {name: each["median"] for name, each in details.items() if isinstance(each, dict) and "median" in each}
    return found


def compared(turns: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By figure: both medians, and this checkout's over the other's."""
    found = {}
    for name in turns[0][0]:
        pairs = [(before[name], after[name]) for before, after in turns if before.get(name) and name in after]
        if pairs:
            ratios = [after / before for before, after in pairs]
            found[name] = {
                "before": statistics.median(before for before, _ in pairs),
                "after": statistics.median(after for _, after in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "greatest": max(ratios),
            }
    return found


def main() -> None:
    """Run the turns, print a line per figure, write the file."""
    parser = arguments(__doc__)
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("command", nargs="+", help="a file of benchmarks/ and its arguments, after --")
    options = parser.parse_args()
    before, other = conditions(), options.other.resolve()
    turns = []
    for turn in range(options.turns):
        order = (other, HERE) if turn % 2 == 0 else (HERE, other)
        results = {checkout: headline(checkout, options.command) for checkout in order}
        turns.append((results[other], results[HERE]))
    figures = compared(turns)
    if not figures:
        sys.exit("The two benchmarks' last lines have no figure in common.")
    print(f"{'':<28}{'before':>12}{'after':>12}{'ratio':>8}  least .. greatest of {options.turns} turns")
    for name, each in figures.items():
        print("{:<28}{before:>12.4g}{after:>12.4g}{ratio:>8.3f}  {least:.3f} .. {greatest:.3f}".format(name, **each))
    details = {"command": options.command, "turns": options.turns, "figures": figures}
    finish(options, before, {name: each["ratio"] for name, each in figures.items()}, details)


if __name__ == "__main__":
    main()
