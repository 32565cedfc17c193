"""Conversation: gains of reuse, look-up decoding, constraints and batches; memory over many requests.

    python benchmarks/conversation.py out/nano [--repeats 20] [--requests 1000] [--frame 640x480] [--json FILE]

latency.py measures the same and more; here it is without PyTorch, and with --cases a part of it.

Greedy answers, unless said otherwise, about frames as a camera's driver delivers them: arrays, no file to decode. Times
to the first token include everything from the call on. Pairs that are compared (cold and warm, with and without)
alternate; ratios are medians over pairs. A bundle of random weights in the proportions of the published model, with its
vocabulary, shows what a model does whose pictures cost more than its steps:

    python -m tools.synthetic_checkpoint out/small-checkpoint --preset small --format safetensors \\
        --tokenizer .cache/qwen.tiktoken
    qwenvl export out/small-checkpoint out/small --precision int8
    python benchmarks/latency.py out/small --repeats 5 --requests 0
"""

from __future__ import annotations

import argparse
import gc
import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import arguments, conditions, finish, needed_bundle, percentiles
from PIL import Image
from repeating import READ, REPEATING, Repeating, dictating

from qwenvl_edge import Constraint, QwenVLEngine, Reply
from qwenvl_edge.families import open_family
from qwenvl_edge.replies.reply import Stats

PICTURE = Path(__file__).parent.parent / "models" / "nano" / "demo.png"
QUESTIONS = ("Describe the picture.", "How many objects are there?", "What does the sign say?", "Is there a red mug?")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 12} for name in ("thing", "colour", "place", "text")},
    "required": ["thing", "colour", "place", "text"],
    "additionalProperties": False,
}
ANY_WORDS = "(?s).*"  # forces nothing, and allows what the free answer says
TOKENS = 32
BATCHES = (1, 2, 4, 8)
Samples = dict[str, list[float]]
Frame = npt.NDArray[np.uint8]


class Bench:
    """An engine and a source of frames that it has never seen."""

    def __init__(self, bundle: str, threads: int | None, size: tuple[int, int]) -> None:
        self.engine = QwenVLEngine(bundle, threads=threads)
        self.family = open_family(self.engine.bundle.manifest)
        # Answers of one length: the ids that end an answer are not drawn.
        ends = [ids[0] for ids in self.family.stop_sequences("chatml", lambda text: [])]
        self.endless = {"banned_ids": ends}
        self._scene = np.asarray(Image.open(PICTURE).convert("RGB").resize(size))
        self._count = itertools.count()
        self._random = np.random.default_rng(0)

    def frame(self) -> Frame:
        """The next frame of a camera that looks at the demo picture: one pixel is another one."""
        frame = self._scene.copy()
        number = next(self._count)
        frame[0, 0] = number % 256, number // 256 % 256, 0
        return frame

    def elsewhere(self) -> Frame:
        """A frame of a camera that looks at another part of the picture every time."""
        height, width = self._scene.shape[:2]
        top, left = self._random.integers(height // 2), self._random.integers(width // 2)
        return self._scene[top : top + height // 2, left : left + width // 2].copy()

    def ask(self, question: str, *frames: Frame, **options: Any) -> Reply:
        """A greedy answer of at most TOKENS tokens."""
        return self.engine.chat(question, images=frames, **{"do_sample": False, "max_new_tokens": TOKENS, **options})

    def dictate(self, repeating: Repeating, frame: Frame, lookup: bool) -> Reply:
        """The answer that is dictated; nothing but its prompt was said before."""
        self.engine.forget()
        turns: list[Any] = [([{"image": frame}, {"text": words}], answer) for words, answer in repeating.turns]
        frames = () if turns else (frame,)
        options = {**repeating.options, "history": turns}
        prompt = self.ask(repeating.question, *frames, lookup=False, **options, max_new_tokens=1).stats.prompt_tokens
        with dictating(self.engine, self.family, repeating.answer, prompt):
            reply = self.ask(repeating.question, *frames, lookup=lookup, **options, max_new_tokens=500)
        if reply.raw_text != repeating.answer:
            raise RuntimeError(f"{reply.raw_text!r} was said, dictated was {repeating.answer!r}.")
        return reply


def reuse(bench: Bench, samples: Samples) -> None:
    """A new frame, a second question about it, ten turns, and a fork of the conversation."""
    bench.engine.forget()
    frame = bench.frame()
    first = bench.ask(QUESTIONS[0], frame)
    samples["cold picture"].append(first.stats.ttft_ms)
    second = bench.ask(QUESTIONS[1], history=first.history)
    samples["second question"].append(second.stats.ttft_ms)
    samples["second question, computed tokens"].append(second.stats.prefill_tokens)
    samples["same picture again"].append(bench.ask(QUESTIONS[1], frame.copy()).stats.ttft_ms)
    history = branch = bench.ask(QUESTIONS[0], frame).history
    for turn in range(2, 11):
        reply = bench.ask(QUESTIONS[turn % len(QUESTIONS)], history=history, max_new_tokens=8)
        branch = history if turn == 6 else branch
        history = reply.history
    samples["tenth turn"].append(reply.stats.ttft_ms)
    samples["tenth turn, computed tokens"].append(reply.stats.prefill_tokens)
    samples["fork after five turns"].append(bench.ask("What colour is it?", history=branch).stats.ttft_ms)


def lookup(bench: Bench, samples: Samples) -> None:
    """Tokens per second with look-up decoding over those without, on the same prompt, computed before."""

    def compare(name: str, ask: Callable[[bool], Reply]) -> None:
        speeds = {}
        rounds = len(samples[f"look-up, {name}"])
        for on in (True, False) if rounds % 2 else (False, True):
            speeds[on] = ask(on).stats.tokens_per_s
        if all(speeds.values()):
            samples[f"look-up, {name}"].append(speeds[True] / speeds[False])
            samples[f"{name}, tokens/s with look-up"].append(speeds[True])
            samples[f"{name}, tokens/s without"].append(speeds[False])

    def free(name: str, question: str, frame: Frame, *, forget: bool = True, **options: Any) -> None:
        def ask(on: bool) -> Reply:
            if forget:
                bench.engine.forget()
            bench.ask(question, frame, lookup=False, **{**options, "max_new_tokens": 1})
            return bench.ask(question, frame, lookup=on, **options)

        compare(name, ask)

    for name, repeating in REPEATING.items():
        compare(name, partial(bench.dictate, repeating, bench.frame()))
    # A robot's standing question: the answer to the frame before is the answer again.
    for name, question in {"words again": QUESTIONS[0], "text and boxes again": READ}.items():
        bench.ask(question, bench.frame())
        free(name, question, bench.frame(), forget=False)
    # Not allowed to end, a model goes on with boxes that resemble each other.
    free("endless boxes", READ, bench.frame(), **{**bench.endless, "max_new_tokens": 4 * TOKENS})
    free("new text and boxes", READ, bench.elsewhere())
    free("new words", QUESTIONS[0], bench.elsewhere())
    free("new JSON", QUESTIONS[0], bench.elsewhere(), constraint=Constraint.json(SCHEMA), max_new_tokens=3 * TOKENS)


def constrained(bench: Bench, samples: Samples) -> None:
    """Milliseconds per token of constrained answers over those of free ones; look-up decoding is off."""
    frame = bench.frame()

    def ask(name: str, **options: Any) -> Stats:
        stats = bench.ask(QUESTIONS[0], frame, lookup=False, **options).stats
        samples[f"{name}, ms a token"].append(stats.decode_ms / max(stats.new_tokens - 1, 1))
        return stats

    ask("first answer")  # computes the prompt
    drawn = {"do_sample": True, "top_p": 0.3, "seed": 1}
    words = Constraint.regex(ANY_WORDS)
    for name, options in {"every token masked": drawn, "likeliest token allowed": {}}.items():
        free, held = ask("free", **options).token_ms, ask(name, constraint=words, **options).token_ms
        if free and held:
            samples[f"{name} / free"].append(float(np.median(held) / np.median(free)))
    ask("JSON Schema", constraint=Constraint.json(SCHEMA))
    samples["JSON Schema / free"].append(samples["JSON Schema, ms a token"][-1] / samples["free, ms a token"][-1])


def batches(bench: Bench, samples: Samples) -> None:
    """Tokens per second of all rows together, after their first ones."""
    for size in BATCHES:
        messages = [{"message": QUESTIONS[0], "images": [bench.frame()]} for _ in range(size)]
        options = {"do_sample": False, "max_new_tokens": TOKENS, **bench.endless}
        stats = [reply.stats for reply in bench.engine.chat_many(messages, max_batch=size, **options)]
        samples[f"batch {size}, tokens/s"].append(size * (TOKENS - 1) / stats[0].decode_ms * 1e3)


def resident_mb() -> float:
    """Resident memory of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def growth_mb(bench: Bench, requests: int) -> float:
    """Resident memory after so many requests over that after a fifth of them."""
    settled = 0.0
    for number in range(requests):
        frames = [bench.frame()] if number % 3 else []
        bench.ask(QUESTIONS[number % len(QUESTIONS)], *frames, max_new_tokens=4)
        if number == requests // 5:
            gc.collect()
            settled = resident_mb()
    gc.collect()
    return resident_mb() - settled


def plot(path: Path, samples: Samples) -> None:
    """Times to the first token as boxes, factors as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 3.8), layout="constrained")
    names = ["cold picture", "second question", "same picture again", "tenth turn", "fork after five turns"]
    left.boxplot([samples[name] for name in names], tick_labels=[name.replace(" ", "\n", 1) for name in names])
    left.set_ylabel("time to first token, ms")
    left.set_ylim(bottom=0)
    one = np.median(samples["batch 1, tokens/s"])
    cases = [name for name in samples if name.startswith("look-up, ")]
    factors = {name.replace(" ", "\n", 1): np.median(samples[name]) for name in cases}
    factors |= {f"batch {n}": np.median(samples[f"batch {n}, tokens/s"]) / one for n in BATCHES[1:]}
    right.bar(list(factors), list(factors.values()))
    right.axhline(1, color="black", linewidth=0.8)
    right.set_ylabel("tokens/s, times those without")
    figure.savefig(path, dpi=130)


def table(samples: Samples) -> None:
    """Percentiles of every case."""
    columns = ("p10", "p50", "p90", "p99", "jitter")
    print(f"{'':<40}" + "".join(f"{column:>10}" for column in columns) + f"{'n':>6}")
    for name, values in samples.items():
        found = percentiles(values)
        print(f"{name:<40}" + "".join(f"{found[key]:>10.2f}" for key in columns), end="")
        print(f"{len(values):>6}")


CASES: dict[str, Callable[[Bench, Samples], None]] = {
    case.__name__: case for case in (reuse, lookup, constrained, batches)
}


def summary(samples: Samples) -> dict[str, float]:
    """The headline figures of what was measured."""

    def middle(name: str) -> float:
        return float(np.median(samples.get(name, [np.nan])))

    def to_cold(name: str) -> float:
        pairs = zip(samples.get(name, []), samples.get("cold picture", []), strict=True)
        ratios = [a / b for a, b in pairs]
        return float(np.median(ratios or [np.nan]))

    headline = {
        "second_question_ttft_ratio": to_cold("second question"),
        "same_picture_again_ttft_ratio": to_cold("same picture again"),
        "tenth_turn_ttft_ratio": to_cold("tenth turn"),
        "lookup_speedup_repeating": min(middle(f"look-up, {name}") for name in [*REPEATING, "text and boxes again"]),
        "lookup_speedup_free": min(middle(f"look-up, new {kind}") for kind in ("text and boxes", "words", "JSON")),
        "constrained_overhead": middle("every token masked / free") - 1,
        "schema_ms_a_token_ratio": middle("JSON Schema / free"),
        "batch4_speedup": middle("batch 4, tokens/s") / middle("batch 1, tokens/s"),
        "soak_growth_mb": middle("growth, MB"),
    }
    return {name: value for name, value in headline.items() if not np.isnan(value)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `measure`."""
    parser.add_argument("--requests", type=int, default=1000, help="over which memory is watched; 0: it is not")
    parser.add_argument("--frame", default="640x480", help="width and height of the camera's frames")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="conversation cases (all)")


def measure(options: argparse.Namespace) -> Samples:
    """Measure the cases wanted, print their table, and return what was measured."""
    width, height = map(int, options.frame.split("x"))
    bench = Bench(options.bundle, options.threads, (width, height))
    samples: Samples = defaultdict(list)
    for round_ in range(options.repeats + 1):
        if round_ == 1:
            samples.clear()  # the first round warms up
        for name in options.cases:
            CASES[name](bench, samples)
    if options.requests:
        samples["growth, MB"].append(growth_mb(bench, options.requests))
    table(samples)
    return samples


def details(options: argparse.Namespace, samples: Samples) -> dict[str, Any]:
    """Details of a measurement for a result file, beside its headline."""
    return {"frame": options.frame, "cases": {name: percentiles(values) for name, values in samples.items()}}


def main() -> None:
    """Measure, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    add_arguments(parser)
    options = parser.parse_args()
    if options.plot and len(options.cases) < len(CASES):
        parser.error("--plot draws all cases; leave --cases out.")
    needed_bundle(options.bundle)
    before = conditions()
    samples = measure(options)
    if options.plot:
        plot(options.plot, samples)
    about = {"threads": options.threads, "bundle": Path(options.bundle).name}
    finish(options, before, summary(samples), about | details(options, samples))


if __name__ == "__main__":
    main()
