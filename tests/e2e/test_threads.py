"""Sixteen threads on one engine, each answer checked; `make soak` does it for an hour and records what it did.

Nothing here depends on how fast it goes: an answer that a deadline or a cancellation ends may end anywhere, so the
process may also be stopped for minutes. Minutes are those of the clock on the wall.
"""

import gc
import json
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmarks.common import conditions, rounded

from qwenvl_edge import CancelToken, Constraint, QwenVLEngine
from support.conversations import PICTURES, WORDS

THREADS = 16
SHORT_REQUESTS = 2000
GROWTH_MB = 16
SETTLING = 0.1  # of a soak; memory is watched from then on
PATTERN = "(yes|no), [a-z]{2,12}"


@dataclass(frozen=True)
class Question:
    """Arguments of a chat and the text that a lone engine answers."""

    arguments: dict
    answer: str

    def may_be_cut_to(self, text: str) -> bool:
        """Whether an answer that ended early may be `text`."""
        if "constraint" in self.arguments:  # what was begun is closed
            return not text or bool(re.fullmatch(PATTERN, text))
        return self.answer.startswith(text.rstrip("\ufffd"))  # it may end inside a character


def questions(bundle) -> list[Question]:
    """Thirty different questions, some of them second turns, greedy, sampled and constrained."""
    lone = QwenVLEngine(bundle, threads=1)
    made = []
    for number in range(30):
        rng = random.Random(number)
        arguments = {
            "message": f"{rng.choice(WORDS)} {number % 7}",
            "images": [PICTURES[i] for i in rng.sample(range(len(PICTURES)), number % 3)],
            "history": [(WORDS[number % 5], "an answer")] if number % 2 else [],
            "max_new_tokens": rng.randint(6, 14),
            "do_sample": number % 5 == 0,
            "top_p": 1.0,
            "seed": number,
        }
        if number % 6 == 4:
            arguments["constraint"] = Constraint.regex(PATTERN)
        lone.forget()
        made.append(Question(arguments, lone.chat(**arguments).raw_text))
    assert len({question.answer for question in made}) > 20  # a crossed reply would show
    return made


@dataclass
class Load:
    """What the threads share."""

    engine: QwenVLEngine
    questions: list[Question]
    ends: float
    requests: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0
    early: int = 0
    wrong: list[str] = field(default_factory=list)

    def go_on(self) -> bool:
        with self.lock:
            self.done += 1
            return not self.wrong and (self.done <= self.requests or time.monotonic() < self.ends)

    def work(self, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while self.go_on():
                self.ask(rng.choice(self.questions), rng.randrange(6), rng)
        except Exception as error:
            self.wrong.append(repr(error))

    def ask(self, question: Question, way: int, rng: random.Random) -> None:
        """Ask in one of several ways, half of which end early."""
        token, early = CancelToken(), True
        if way == 0:
            threading.Timer(rng.random() * 0.02, token.cancel).start()
            text = self.engine.chat(**question.arguments, cancel=token).raw_text
        elif way == 1:
            text = self.engine.chat(**question.arguments, deadline_ms=rng.random() * 50 + 0.1).raw_text
        elif way == 2:
            with self.engine.stream(**question.arguments) as stream:
                next(stream, None)
            text = stream.reply.raw_text
        elif way == 3:
            stream = self.engine.stream(**question.arguments)
            assert "".join(stream) == stream.reply.text
            text, early = stream.reply.raw_text, False
        elif way == 4:
            other = rng.choice(self.questions)
            reply, beside = self.engine.chat_many([question.arguments, other.arguments])
            text, early = reply.raw_text, False
            if beside.raw_text != other.answer:
                self.wrong.append(f"{other.arguments}: {beside.raw_text!r} instead of {other.answer!r}")
        else:
            text, early = self.engine.chat(**question.arguments).raw_text, False
        with self.lock:
            self.early += early
            if not (question.may_be_cut_to(text) if early else text == question.answer):
                self.wrong.append(f"{question.arguments}: {text!r} instead of {question.answer!r}")


def run(load: Load) -> None:
    threads = [threading.Thread(target=load.work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resident_mb() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def engine(bundle) -> QwenVLEngine:
    return QwenVLEngine(bundle, threads=1, prefill_chunk=32, cache_memory_mb=3)


def test_no_reply_is_crossed(random_bundle):
    load = Load(engine(random_bundle), questions(random_bundle), time.monotonic(), SHORT_REQUESTS)
    run(load)
    assert load.wrong == []
    assert load.done >= SHORT_REQUESTS and 0 < load.early < load.done


@dataclass
class Watch:
    """Resident memory beside the requests done, once every `seconds`, and at the end."""

    load: Load
    seconds: float
    times_s: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def look(self, started: float) -> None:
        gc.collect()
        self.times_s.append(time.monotonic() - started)
        self.requests.append(self.load.done)
        self.resident_mb.append(resident_mb())

    def __enter__(self) -> "Watch":
        started = time.monotonic()

        def work() -> None:
            while not self.over.wait(self.seconds):
                self.look(started)
            self.look(started)

        self.thread = threading.Thread(target=work)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def growth_mb(self) -> float:
        """Memory at the end over that at the first look after settling."""
        settled = next(
            mb for s, mb in zip(self.times_s, self.resident_mb, strict=True) if s >= SETTLING * self.times_s[-1]
        )
        return self.resident_mb[-1] - settled


def record(path: Path, before: dict, watch: Watch) -> None:
    """Write what a soak did, whether it went well or not."""
    load = watch.load
    headline = {
        "minutes": watch.times_s[-1] / 60,
        "requests": load.done,
        "wrong_answers": len(load.wrong),
        "soak_growth_mb": watch.growth_mb(),
    }
    details = {"threads": THREADS, "ended_early": load.early, "wrong": load.wrong[:10]}
    details |= {name: getattr(watch, name) for name in ("times_s", "requests", "resident_mb")}
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"conditions": before, "headline": rounded(headline), "details": rounded(details)}
    path.write_text(json.dumps(report, indent=1) + "\n")


def test_memory_does_not_grow(random_bundle, soak_minutes, soak_json):
    if not soak_minutes:
        pytest.skip("memory is watched with --soak-minutes only")
    before = conditions()
    load = Load(engine(random_bundle), questions(random_bundle), time.monotonic() + 60 * soak_minutes, SHORT_REQUESTS)
    with Watch(load, seconds=soak_minutes) as watch:
        run(load)
    if soak_json:
        record(soak_json, before, watch)
    assert load.wrong == [] and watch.growth_mb() < GROWTH_MB, f"{load.done} requests, {watch.growth_mb():+.1f} MB"
