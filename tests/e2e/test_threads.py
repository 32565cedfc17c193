"""Sixteen threads on one engine, each answer checked; `pytest tests/e2e/test_threads.py --soak-minutes 60` soaks."""

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conversations import PICTURES, WORDS
from random_checkpoint import GENERATION, write_checkpoint

from qwenvl_edge import CancelToken, QwenVLEngine

THREADS = 16
SHORT_REQUESTS = 2000
GROWTH_MB = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    exporter = pytest.importorskip("qwenvl_edge_export.exporter", reason="exporting needs PyTorch")
    folder = tmp_path_factory.mktemp("threads")
    return exporter.export(write_checkpoint(folder / "checkpoint", seed=9, generation=GENERATION), folder / "bundle")


@dataclass(frozen=True)
class Question:
    """Arguments of a chat and the text that a lone engine answers."""

    arguments: dict
    answer: str


def questions(bundle) -> list[Question]:
    """Thirty different questions, some of them second turns, greedy and sampled."""
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
            # An answer cut inside a character ends with a replacement character.
            right = question.answer.startswith(text.rstrip("\ufffd")) if early else text == question.answer
            if not right:
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


def test_no_reply_is_crossed(bundle, soak_minutes):
    qwen = QwenVLEngine(bundle, threads=1, prefill_chunk=32, cache_memory_mb=3)
    load = Load(qwen, questions(bundle), time.monotonic() + 60 * soak_minutes, SHORT_REQUESTS)
    run(load)
    assert load.wrong == []
    assert load.done >= SHORT_REQUESTS and 0 < load.early < load.done


def test_memory_does_not_grow(bundle, soak_minutes):
    if not soak_minutes:
        pytest.skip("memory is watched with --soak-minutes only")
    qwen = QwenVLEngine(bundle, threads=1, prefill_chunk=32, cache_memory_mb=3)
    asked = questions(bundle)
    run(Load(qwen, asked, time.monotonic() + 6 * soak_minutes, SHORT_REQUESTS))
    before = resident_mb()
    load = Load(qwen, asked, time.monotonic() + 54 * soak_minutes, SHORT_REQUESTS)
    run(load)
    growth = resident_mb() - before
    assert load.wrong == [] and growth < GROWTH_MB, f"{load.done} requests, {growth:+.1f} MB"
