"""Conversation: what reuse, look-up decoding, constraints and batches save, and that nothing grows.

    python benchmarks/conversation.py out/nano [--repeats 20] [--requests 1000] [--json FILE] [--plot FILE]

Greedy answers about one picture. Pairs that are compared (cold and warm, with and without) alternate; ratios are
medians over pairs. Times to the first token include decoding and preprocessing the picture.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, conditions, finish, spread
from PIL import Image

from qwenvl_edge import Constraint, QwenVLEngine, Reply
from qwenvl_edge.families import create_family

PICTURE = Path(__file__).parent.parent / "models" / "nano" / "demo.png"
QUESTIONS = ("Describe the picture.", "How many objects are there?", "What does the sign say?", "Is there a red mug?")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 12} for name in ("thing", "colour", "place", "text")},
    "required": ["thing", "colour", "place", "text"],
    "additionalProperties": False,
}
TOKENS = 32
BATCHES = (1, 2, 4, 8)
Samples = dict[str, list[float]]


class Bench:
    """An engine and a source of pictures that it has never seen."""

    def __init__(self, bundle: str, threads: int | None) -> None:
        self.engine = QwenVLEngine(bundle, threads=threads)
        self.threads = threads
        model = self.engine.bundle.manifest.model
        family = create_family("qwen_vl", image_start_id=model.image_start_id, image_tokens=model.image_tokens)
        # Answers of one length: the ids that end an answer are not drawn.
        self.endless = {"banned_ids": [family.turn_end, family.turn_start, family.end_of_text]}
        self._picture = Image.open(PICTURE).convert("RGB")
        self._count = 0

    def picture(self) -> Image.Image:
        """The demo picture with one pixel changed."""
        self._count += 1
        self._picture.putpixel((0, 0), (self._count % 256, self._count // 256 % 256, 0))
        return self._picture.copy()

    def ask(self, question: str, **options: Any) -> Reply:
        """A greedy answer of at most TOKENS tokens."""
        return self.engine.chat(question, **{"do_sample": False, "max_new_tokens": TOKENS, **options})


def reuse(bench: Bench, samples: Samples) -> None:
    """A new picture, a second question about it, ten turns, and a fork of the conversation."""
    bench.engine.forget()
    picture = bench.picture()
    first = bench.ask(QUESTIONS[0], images=[picture])
    samples["cold picture"].append(first.stats.ttft_ms)
    samples["same picture again"].append(bench.ask(QUESTIONS[1], images=[picture]).stats.ttft_ms)
    history = bench.ask(QUESTIONS[0], images=[picture]).history
    branch = history
    for turn in range(2, 11):
        reply = bench.ask(QUESTIONS[turn % len(QUESTIONS)], history=history, max_new_tokens=8)
        branch = history if turn == 6 else branch
        history = reply.history
    samples["tenth turn"].append(reply.stats.ttft_ms)
    samples["tenth turn, computed tokens"].append(reply.stats.prefill_tokens)
    samples["fork after five turns"].append(bench.ask("What colour is it?", history=branch).stats.ttft_ms)


def lookup(bench: Bench, samples: Samples) -> None:
    """Tokens a second with look-up decoding over those without, on a repeated answer and on free ones."""
    picture = bench.picture()
    described = bench.ask(QUESTIONS[0], images=[picture])
    endless = {**bench.endless, "max_new_tokens": 4 * TOKENS}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "repeating": (QUESTIONS[0], {"history": described.history * 3}),  # asked and answered three times before
        # Not allowed to end, a model goes on with boxes.
        "endless": (QUESTIONS[0], {"images": [picture], **endless}),
        "ocr": ("OCR with grounding:", {"images": [picture]}),
        "free": (QUESTIONS[0], {"images": [picture]}),
    }
    for name, (message, case) in cases.items():
        speeds = []
        for on in (True, False):
            bench.ask(message, **{**case, "max_new_tokens": 1})  # the prompt is computed before either is timed
            speeds.append(bench.ask(message, **{**case, "lookup": on}).stats.tokens_per_s)
        if all(speeds):
            samples[f"look-up, {name}"].append(speeds[0] / speeds[1])


def constrained(bench: Bench, samples: Samples) -> None:
    """Milliseconds a token of an answer with a JSON Schema and of a free one, each token computed by itself."""
    picture = bench.picture()
    free = bench.ask(QUESTIONS[0], images=[picture], lookup=False, **bench.endless)
    held = bench.ask(QUESTIONS[0], images=[picture], lookup=False, constraint=Constraint.json(SCHEMA))
    samples["free token"].extend(free.stats.token_ms)
    samples["constrained token"].extend(held.stats.token_ms)
    samples["constrained / free"].append(float(np.median(held.stats.token_ms) / np.median(free.stats.token_ms)))


def batches(bench: Bench, samples: Samples) -> None:
    """Tokens a second of all rows together, after their first ones."""
    for size in BATCHES:
        messages = [{"message": QUESTIONS[0], "images": [bench.picture()]} for _ in range(size)]
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
        image = {"images": [bench.picture()]} if number % 3 else {}
        bench.ask(QUESTIONS[number % len(QUESTIONS)], **image, max_new_tokens=4)
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

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = ["cold picture", "same picture again", "tenth turn", "fork after five turns"]
    left.boxplot([samples[name] for name in names], tick_labels=[name.replace(" ", "\n", 1) for name in names])
    left.set_ylabel("time to first token, ms")
    left.set_ylim(bottom=0)
    one = np.median(samples["batch 1, tokens/s"])
    cases = [name for name in samples if name.startswith("look-up")]
    factors = {name.replace(" ", "\n", 1): np.median(samples[name]) for name in cases}
    factors |= {f"batch {n}": np.median(samples[f"batch {n}, tokens/s"]) / one for n in BATCHES[1:]}
    right.bar(list(factors), list(factors.values()))
    right.axhline(1, color="black", linewidth=0.8)
    right.set_ylabel("tokens/s, times those without")
    figure.savefig(path, dpi=130)


def table(samples: Samples) -> None:
    """Percentiles of every case; jitter is p99 - p50."""
    print(f"{'':<30}{'p50':>10}{'p90':>10}{'p99':>10}{'jitter':>10}{'n':>6}")
    for name, values in samples.items():
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        print(f"{name:<30}{p50:>10.2f}{p90:>10.2f}{p99:>10.2f}{p99 - p50:>10.2f}{len(values):>6}")


def main() -> None:
    """Measure, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--requests", type=int, default=1000, help="requests over which memory is watched")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    before = conditions()
    bench = Bench(options.bundle, options.threads)
    samples: Samples = {}
    cases: tuple[Callable[[Bench, Samples], None], ...] = (reuse, lookup, constrained, batches)
    for round_ in range(options.repeats + 1):
        if round_ <= 1:
            samples = _Lists()  # the first round warms up
        for case in cases:
            case(bench, samples)
    table(samples)

    def ratio(name: str) -> float:
        return float(np.median([a / b for a, b in zip(samples[name], samples["cold picture"], strict=True)]))

    one = float(np.median(samples["batch 1, tokens/s"]))
    headline = {
        "second_question_ttft_ratio": ratio("same picture again"),
        "tenth_turn_ttft_ratio": ratio("tenth turn"),
        "lookup_speedup_repeating": float(np.median(samples["look-up, repeating"])),
        "lookup_speedup_free": float(np.median(samples["look-up, free"])),
        "constrained_overhead": float(np.median(samples["constrained / free"])) - 1,
        "batch4_speedup": float(np.median(samples["batch 4, tokens/s"])) / one,
        "soak_growth_mb": growth_mb(bench, options.requests),
    }
    if options.plot:
        plot(options.plot, samples)
    details = {"threads": options.threads, "cases": {name: spread(values) for name, values in samples.items()}}
    finish(options, before, headline, details)


class _Lists(dict[str, list[float]]):
    """Lists that are there when they are first asked for."""

    def __missing__(self, name: str) -> list[float]:
        return self.setdefault(name, [])


if __name__ == "__main__":
    main()
