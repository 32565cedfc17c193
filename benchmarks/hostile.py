"""`qwenvl serve` under mixed hostile load beside one honest client: every answer right and in time, memory bounded.

    python benchmarks/hostile.py out/nano [--minutes 60] [--threads 6] [--kinds KIND ...] [--json FILE]

The honest client asks about a picture, one question after another: first alone, then while `attacks.py` sends what it
has, from another address, as from another machine (`--same-address`: from the honest client's, where no server could
tell them apart). The last line: requests of the honest client, hostile ones, honest_p99_ratio (the 99th percentile of
its times under attack over that alone), peak_mb (of the server and the processes that it started, resident), wrong and
lost answers. The attackers run at a lower priority, since they would have machines of their own, and compress the
rows of their pictures once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from attacks import KINDS
from common import arguments, conditions, finish, needed_bundle
from server import QUESTIONS, Load, served

ATTACKS = Path(__file__).with_name("attacks.py")
ELSEWHERE = "127.0.0.2"  # Linux has all of 127.0.0.0/8
PAUSE_S = 0.1  # of the honest client between two questions
WITHIN_S = 60.0
QUIET_SHARE = 0.1  # of the time, alone; half a minute at least
QUIET_S = 15.0


class Honest:
    """A client whose answers are known; seconds: of each answer. wrong, lost: how many were another or none."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._expected: dict[str, str] = {}
        self.seconds: list[float] = []
        self.wrong: list[dict[str, str]] = []
        self.lost: list[str] = []

    async def ask_for(self, seconds: float) -> None:
        """Ask one question after another for some seconds; the first answer to each is taken as right."""
        ends = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            number = 0
            while time.monotonic() < ends or number < len(QUESTIONS):
                await self._ask(http, QUESTIONS[number % len(QUESTIONS)])
                number += 1
                await asyncio.sleep(PAUSE_S)

    async def _ask(self, http: httpx.AsyncClient, question: str) -> None:
        started = time.perf_counter()
        try:
            text, _ = await self._load.whole(http, self._load.body(question, max_tokens=64))
        except (httpx.HTTPError, ValueError) as error:
            self.lost.append(f"{type(error).__name__}: {error}")
            return
        self.seconds.append(time.perf_counter() - started)
        if text != self._expected.setdefault(question, text):
            self.wrong.append({"question": question, "text": text, "expected": self._expected[question]})


@contextlib.contextmanager
def attacked(address: str, seconds: float, options: argparse.Namespace, counts: dict[str, int]) -> Iterator[None]:
    """Attack for so many seconds; the counts are there at the end."""
    command = ["nice", "-n", "10", sys.executable, str(ATTACKS), address, "--seconds", str(seconds)]
    command += ["--threads", str(options.threads), "--kinds", *options.kinds]
    if sys.platform == "linux" and not options.same_address:
        command += ["--origin", ELSEWHERE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield
        output, _ = process.communicate()
        counts.update(json.loads(output.strip().splitlines()[-1]))


def resident_mb(pid: int) -> float:
    """Memory of a process and of those that it started, in megabytes; 0 where the system does not tell."""
    total = 0
    for each in (pid, *_children(pid)):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{each}/status").read_text().partition("VmRSS:")[2].split()
            total += int(fields[0])
    return total / 1024


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    return []


async def _watch(pid: int, peak: list[float]) -> None:
    while True:
        peak.append(resident_mb(pid))
        await asyncio.sleep(0.2)


async def _beside(honest: Honest, seconds: float, pid: int, peak: list[float]) -> None:
    watching = asyncio.ensure_future(_watch(pid, peak))
    await honest.ask_for(seconds)
    watching.cancel()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long, the quiet part included")
    parser.add_argument("--threads", type=int, default=6, help="attackers at once")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help="attacks; default: all"
    )
    parser.add_argument("--same-address", action="store_true", help="attack from the honest client's address")
    return parser.parse_args()


def main() -> None:
    """Measure alone, then under attack."""
    options = parse()
    needed_bundle(options.bundle)
    before: dict[str, Any] = {
        **conditions(),
        "minutes": options.minutes,
        "attackers": options.threads,
        "one_address": options.same_address,
    }
    seconds = options.minutes * 60
    quiet = max(min(QUIET_S, seconds / 2), seconds * QUIET_SHARE)
    counts: dict[str, int] = {}
    peak = [0.0]
    with served(options.bundle, None, limits=True) as server:
        honest = Honest(Load(options.bundle, server.address, 64))
        asyncio.run(honest.ask_for(3.0))  # warms up
        honest.seconds.clear()
        asyncio.run(_beside(honest, quiet, server.pid, peak))
        alone, honest.seconds = honest.seconds, []
        with attacked(server.address, seconds - quiet, options, counts):
            asyncio.run(_beside(honest, seconds - quiet, server.pid, peak))
    times = {"alone": alone, "attacked": honest.seconds or [WITHIN_S]}
    p99 = {name: float(np.percentile(values, 99)) for name, values in times.items()}
    median = {name: float(np.median(values)) for name, values in times.items()}
    headline = {
        "requests": len(alone) + len(honest.seconds) + len(honest.lost),
        "hostile": sum(counts.values()),
        "honest_p99_ratio": p99["attacked"] / p99["alone"],
        "peak_mb": max(peak),
        "wrong": len(honest.wrong),
        "lost": len(honest.lost),
    }
    details = {"p99_s": p99, "median_s": median, "attacks": counts, "wrong": honest.wrong, "lost": honest.lost[:20]}
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
