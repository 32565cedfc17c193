"""Runs the tests again and again, every second time beside other work, and keeps the names of those that failed.

    python tools/flaky.py [--runs 10] [--random-order] [-- arguments of pytest, such as tests/server]

A test that fails in every run is broken, one that fails in some does not repeat; both are kept, with the runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BURN = "while True: sum(range(100_000))"
TESTS_RAN = (0, 1)  # exit codes of pytest: all passed, some failed


@dataclass
class Failures:
    """Names of tests, each with the numbers of the runs in which it failed."""

    runs: dict[str, list[int]] = field(default_factory=dict)

    def add(self, run: int, names: list[str]) -> None:
        """Note what failed in a run."""
        for name in names:
            self.runs.setdefault(name, []).append(run)

    def lines(self, runs: int) -> list[str]:
        """One line per test: how often it failed, its name, and in which runs."""
        ordered = sorted(self.runs.items(), key=lambda item: (-len(item[1]), item[0]))
        return [f"{len(seen)} of {runs}  {name}  (runs {', '.join(map(str, seen))})" for name, seen in ordered]


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes computing meanwhile."""
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def failed(report: Path) -> list[str]:
    """Names in pytest's JUnit report of the tests that failed or broke off in set-up or teardown, in order."""
    cases = ET.parse(report).getroot().iter("testcase")
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return list(dict.fromkeys(f"{case.get('classname')}::{case.get('name')}" for case in bad))


def run_once(arguments: list[str], seed: int | None) -> list[str]:
    """Run pytest; return the names of the tests that failed, or of the run itself where it did not finish."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        order = [] if seed is None else ["-p", "tools.random_order", "--order-seed", str(seed)]
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *order, *arguments]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code not in TESTS_RAN or not report.is_file():
            return [f"pytest ended with {code}"]
        return failed(report)


def main(arguments: list[str] | None = None) -> int:
    """Run the tests; 1 where any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="how often (10)")
    parser.add_argument("--random-order", action="store_true", help="modules in another order in each run")
    parser.add_argument("--burners", type=int, default=os.cpu_count(), help="busy processes beside every second run")
    parser.add_argument("--keep", type=Path, default=ROOT / "out" / "flaky.txt", help="file of the names")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest")
    chosen = parser.parse_args(arguments)
    failures = Failures()
    for run in range(1, chosen.runs + 1):
        beside = chosen.burners if run % 2 == 0 else 0
        print(f"run {run} of {chosen.runs}, {f'beside {beside} busy processes' if beside else 'alone'}", flush=True)
        began = time.monotonic()
        with busy(beside):
            failures.add(run, run_once(chosen.pytest, run if chosen.random_order else None))
        print(f"run {run} took {time.monotonic() - began:.0f} s", flush=True)
        chosen.keep.parent.mkdir(parents=True, exist_ok=True)
        chosen.keep.write_text("".join(line + "\n" for line in failures.lines(run)), encoding="utf-8")
    print("\n".join(failures.lines(chosen.runs)) or f"nothing failed in {chosen.runs} runs")
    return 1 if failures.runs else 0


if __name__ == "__main__":
    sys.exit(main())
