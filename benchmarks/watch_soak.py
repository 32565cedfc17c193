"""Service life of `qwenvl watch`: synthetic cameras, and what goes wrong in a day, in a few minutes.

    python benchmarks/watch_soak.py out/nano --minutes 10 [--cameras 2] [--rate 10] [--json FILE]

Two cameras at ten frames a second are asked about by one engine, through equal stages: steady; a camera that disappears
and returns; a wall clock that jumps by a day, forth and back; a log whose disk is full; a quarter of one core's time,
where a cgroup can be made; all cores but one taken away; and a `qwenvl serve` that is ended and started again
beside clients that go on asking it. The last line has a figure for each, and `broken`, the promises that did not hold;
the exit code is 1 if there are any. The time that a process sees is replaced, the disk is full by a limit of the file's
size, cores go by the affinity of its threads. The cgroup's quota stands for a power mode with a lower frequency, which
is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, conditions, finish, needed_bundle, running_threads
from watch_soak_machine import DAY_S, LowPower, can_limit, full_disk, jumping_clock, one_core
from watch_soak_server import restarted_under_load

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.errors import FrameError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.watch.cameras import Camera, CameraFrame
from qwenvl_edge.robotics.watch.sinks import LineFile, Sink
from qwenvl_edge.robotics.watch.watching import Watch, WatchSettings

PICTURES = [Path(__file__).parent.parent / "models" / "nano" / name for name in ("demo.png", "later.png")]
QUESTION = "What colour is the car?"
MAX_AGE_MS = 1000.0
GROWTH_MB = 32.0  # of resident memory from the end of the steady stage on
IN_FLIGHT = 3  # frames of a camera that may be answered about when it has just gone
PATIENCE_S = 60.0
STAGES = 7
WARM_ANSWERS = 20
MB = 1 << 20


class Synthetic(Camera):
    """A camera that shows drawn pictures at a rate, every frame another by noise, and can be unplugged."""

    rate = 10.0
    unplugged = threading.Event()

    @property
    def kind(self) -> str:
        """A stream: its end is a failure."""
        return "stream"

    def check(self) -> None:
        """Nothing is needed."""

    def frames(self) -> Iterator[CameraFrame]:  # type: ignore[override]
        """Frames until it is unplugged."""
        pictures = [load_picture(path, name=path.name).pixels for path in PICTURES]
        noise = np.random.default_rng(0)
        begun, number = time.monotonic(), 0
        while not self.unplugged.is_set():
            pixels = pictures[number % len(pictures)].copy()
            pixels[:8, :8] = noise.integers(0, 256, 3, np.uint8)
            yield CameraFrame(pixels, "rgb")
            number += 1
            time.sleep(max(begun + number / self.rate - time.monotonic(), 0.0))
        raise FrameError(f"{self.name} is unplugged.")


class Told:
    """Keeps the lines of the watches."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.count = 0

    def send(self, line: str) -> None:
        """Keep a line."""
        self.count += 1
        self.lines.append(json.loads(line))

    def close(self) -> None:
        """Nothing to end."""

    def take(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


@contextlib.contextmanager
def unplugged() -> Iterator[None]:
    """The cameras are away."""
    Synthetic.unplugged.set()
    try:
        yield
    finally:
        Synthetic.unplugged.clear()


class Soak:
    """Watches in threads, and the stages that they go through."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.log, self.told, self.said = folder / "log.jsonl", Told(), list[str]()
        self.seconds = options.minutes * 60 / STAGES
        engine = QwenVLEngine(options.bundle, threads=options.threads)
        self._file = LineFile(self.log)
        Synthetic.rate = options.rate
        self._watches = []
        for number in range(options.cameras):
            settings = WatchSettings(QUESTION, every_s=0.0, max_age_ms=MAX_AGE_MS)
            sinks: list[Sink] = [self.told, self._file]
            self._watches.append(
                Watch(engine, Synthetic(f"camera{number}"), settings, sinks, Messages(self.said.append))
            )
        self._threads = [threading.Thread(target=watch.run) for watch in self._watches]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start the watches; end them at last."""
        try:
            with running_threads(self._threads, self._stop):
                yield
        finally:
            self._file.close()

    def warm_up(self) -> None:
        """Wait for the first answers, which fill caches; a busy machine needs longer for them."""
        time.sleep(min(self.seconds, 5.0))
        self._wait(lambda: self.told.count >= WARM_ANSWERS)

    def _stop(self) -> None:
        for watch in self._watches:
            watch.stop()

    def stage(self, during: contextlib.AbstractContextManager[Any]) -> dict[str, Any]:
        """A stage: half of it `during` something, half after it; a busy machine is given time for a first answer.

        Returns what was told, and how old the frames were.
        """
        self.told.take()
        self.said.clear()
        stale, failed = self._counted("stale"), self._counted("failed")
        with during:
            time.sleep(self.seconds / 2)
            self._wait(lambda: len(self.told.lines) >= len(self._watches))
            ages_during = [line["latency_ms"] for line in list(self.told.lines) if "text" in line]
            answers_during = len(ages_during)
        time.sleep(self.seconds / 2)
        self._wait(lambda: sum("text" in line for line in self.told.lines) > answers_during)
        lines = self.told.take()
        ages = [line["latency_ms"] for line in lines if "text" in line]
        return {
            "answers": len(ages),
            "answers_during": answers_during,
            "answer_age_p50_ms": float(np.median(ages)) if ages else None,
            "answer_age_max_ms": max(ages, default=None),
            "answer_age_during_p50_ms": float(np.median(ages_during)) if ages_during else None,
            "stale": self._counted("stale") - stale,
            "failed": self._counted("failed") - failed,
            "lost": sum(line.get("event") == "camera lost" for line in lines),
            "back": sum(line.get("event") == "camera back" for line in lines),
            "said": len(self.said),
            "resident_mb": resident_mb(),
            "threads": threading.active_count(),
            "files": len(list(Path("/proc/self/fd").iterdir())),
        }

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not condition() and time.monotonic() < ends:
            time.sleep(0.05)

    def _counted(self, name: str) -> int:
        return sum(getattr(watch.counts, name) for watch in self._watches)

    def whole_lines(self) -> tuple[int, int]:
        """Lines of the log that are whole, and those that are not."""
        whole, broken = 0, 0
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                json.loads(line)
                whole += 1
            except ValueError:
                broken += 1
        return whole, broken


def broken_promises(stages: dict[str, dict[str, Any]], server: dict[str, Any], broken_lines: int) -> list[str]:
    """Sentences about what should not have been."""
    first, last = stages["steady"], stages["one_core"]
    checks = {
        "a stage had no answers after it": all(each["answers"] > each["answers_during"] for each in stages.values()),
        "an answer failed": not any(each["failed"] for each in stages.values()),
        "memory grew": last["resident_mb"] - first["resident_mb"] < GROWTH_MB,
        "threads or files were left over": (last["threads"], last["files"]) <= (first["threads"], first["files"]),
        "a lost camera was not told or did not come back": stages["camera_gone"]["lost"]
        == stages["camera_gone"]["back"]
        > 0,
        "answers came from a camera that was away": stages["camera_gone"]["answers_during"]
        <= IN_FLIGHT * stages["camera_gone"]["lost"],
        "a jump of the clock changed ages": stages["clock_jumps"]["answers_during"] > stages["clock_jumps"]["stale"]
        and stages["clock_jumps"]["answer_age_max_ms"] < DAY_S * 1e3,
        "a line of the log is not whole": not broken_lines,
        "a full disk was not told": stages["full_disk"]["said"] > 0,
        "the server gave a wrong answer": not server["wrong"],
        "a request hung": not server["hung"],
        "the server did not come back": server["after"] > 0,
    }
    return [sentence for sentence, holds in checks.items() if not holds]


def main(options: argparse.Namespace) -> int:
    """Run all stages, and print the figures."""
    before = conditions()
    needed_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options, Path(folder))
        ways: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
            "steady": contextlib.nullcontext,
            "camera_gone": unplugged,
            "clock_jumps": jumping_clock,
            "full_disk": lambda: full_disk(soak.log),
            **({"low_power": LowPower} if can_limit() else {}),
            "one_core": one_core,
        }
        with soak.running():
            soak.warm_up()
            stages = {name: soak.stage(way()) for name, way in ways.items()}
        whole, broken_lines = soak.whole_lines()
        lost_lines = soak.told.count - whole
    server = restarted_under_load(options.bundle, soak.seconds, PICTURES[0], QUESTION)
    steady, last = stages["steady"], stages["one_core"]
    headline = {
        "answers": sum(each["answers"] for each in stages.values()),
        "answer_age_p50_ms": steady["answer_age_p50_ms"],
        "answer_age_max_ms": max(each["answer_age_max_ms"] or 0.0 for each in stages.values()),
        "stale": sum(each["stale"] for each in stages.values()),
        "memory_mb": last["resident_mb"],
        "memory_growth_mb": last["resident_mb"] - steady["resident_mb"],
        "camera_lost_and_back": stages["camera_gone"]["back"],
        "clock_jump_age_max_ms": stages["clock_jumps"]["answer_age_max_ms"],
        "log_lines_whole": whole,
        "log_lines_lost": lost_lines,
        "log_lines_broken": broken_lines,
        "low_power_age_p50_ms": stages["low_power"]["answer_age_during_p50_ms"] if "low_power" in stages else None,
        "one_core_age_p50_ms": last["answer_age_p50_ms"],
        "server_away_s": server["away_s"],
        "server_wrong": server["wrong"],
        "broken": broken_promises(stages, server, broken_lines),
    }
    finish(options, before, headline, {"minutes": options.minutes, "stages": stages, "server": server})
    return 1 if headline["broken"] else 0


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="of all stages together (10)")
    parser.add_argument("--cameras", type=int, default=2, metavar="N", help="beside each other (2)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="frames a second of each (10)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    raise SystemExit(main(parser.parse_args()))
