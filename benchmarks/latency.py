"""Latency of a bundle on this machine, next to PyTorch eager on the same weights.

    python benchmarks/latency.py out/nano [--checkpoint models/nano] [--repeats 20] [--requests 1000] [--json FILE]
    python benchmarks/latency.py --model 1b [--folder .cache/scaled] [--repeats 5] [--json FILE]

First one picture, one question, greedy; then the conversations of conversation.py: cold picture, same picture again,
tenth turn, fork, look-up decoding, constraints, batches, memory over --requests (--cases names some, or none).
Repeats of the runtime and of PyTorch alternate; every figure is a median over them with quartiles. Peak memory is the
resident peak of a process of its own that loads the bundle and answers once.
With --model, int4 and int8 bundles of random weights are measured instead (scaled.py): 6 GB on disk, 8 GB of memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/synthetic_checkpoint

import conversation
import numpy as np
from common import arguments, conditions, finish, needed_bundle, percentiles, ratio, spread
from PIL import Image

from qwenvl_edge import QwenVLEngine
from tools import synthetic_families

QUESTION = "Describe the picture."
PICTURE = Path(__file__).parent.parent / "models" / "nano" / "demo.png"
SETTLE_S = 0.1  # the other side's worker threads go on spinning for a while after their last operator
STAGES = ("image_ms", "prefill_ms", "ttft_ms", "token_ms")


@dataclass
class Timings:
    """Milliseconds of each repeat; token_ms holds every token after the first of all repeats."""

    image_ms: list[float] = field(default_factory=list)
    prefill_ms: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)


def runtime_once(engine: QwenVLEngine, picture: Image.Image, timings: Timings) -> str:
    """One answer with nothing kept from the one before: no picture's features, no computed prefix."""
    engine.forget()
    started = time.perf_counter()
    reply = engine.chat(QUESTION, images=[picture], do_sample=False, max_new_tokens=64)
    timings.answer_ms.append((time.perf_counter() - started) * 1e3)
    timings.image_ms.append(reply.stats.image_ms)
    timings.prefill_ms.append(reply.stats.prefill_ms)
    timings.ttft_ms.append(reply.stats.ttft_ms)
    timings.token_ms.extend(reply.stats.token_ms)
    return reply.raw_text


def torch_once(checkpoint: Path, threads: int | None) -> Callable[[Image.Image, Timings], None]:
    """The same work in PyTorch eager, fp32, with a growing KV cache."""
    import torch

    from qwenvl_edge.inputs.parts import Text
    from qwenvl_edge.inputs.pictures import load_picture, pixel_values
    from qwenvl_edge.inputs.prompt import PromptBuilder
    from qwenvl_edge.inputs.tokenizer import Tokenizer
    from qwenvl_edge_export.checkpoint.reader import Checkpoint
    from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork

    if threads:
        torch.set_num_threads(threads)
    opened = Checkpoint.open(checkpoint)
    model = QwenVLNetwork.load(opened.family.config, opened.tensor)
    family = opened.family.runtime_family()
    prompts = PromptBuilder(family, Tokenizer(checkpoint / "qwen.tiktoken", family.special_tokens))

    @torch.inference_mode()
    def once(image: Image.Image, timings: Timings) -> None:
        clock = started = time.perf_counter()

        def lap() -> float:
            nonlocal clock
            last, clock = clock, time.perf_counter()
            return (clock - last) * 1e3

        picture = load_picture(image)
        pixels = pixel_values(picture, family.preprocessing)
        features = model.encode_images(torch.from_numpy(pixels)[None])
        timings.image_ms.append(lap())
        prompt = prompts.chat((picture, Text(QUESTION)), system=family.default_system, window=6144)
        logits, cache = model.decode(model.embed(torch.from_numpy(prompt.ids)[None], features), last=1)
        token = int(logits[0, -1].argmax())
        timings.prefill_ms.append(lap())
        timings.ttft_ms.append((clock - started) * 1e3)
        for _ in range(63):
            if token == family.turn_end:
                break
            logits, cache = model.decode(model.embed(torch.tensor([[token]])), cache, alpha=1.0)
            token = int(logits[0, -1].argmax())
            timings.token_ms.append(lap())
        timings.answer_ms.append((time.perf_counter() - started) * 1e3)

    return once


def load_ms(bundle: str, threads: int | None, repeats: int = 5) -> list[float]:
    """Opening the engine, with the bundle's files in the page cache."""
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        QwenVLEngine(bundle, threads=threads)
        samples.append((time.perf_counter() - started) * 1e3)
    return samples


def peak_memory_mb(bundle: str) -> float:
    """Resident peak of a fresh process that answers once."""
    command = [sys.executable, __file__, bundle, "--only-memory"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def answer_and_print_peak(bundle: str) -> None:
    """The work of the process that `peak_memory_mb` starts."""
    QwenVLEngine(bundle).chat(QUESTION, images=[PICTURE], do_sample=False, max_new_tokens=64)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would start at the parent's
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def plot(path: Path, columns: dict[str, Timings]) -> None:
    """Bars of the stages' medians, quartiles as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for i, (name, timings) in enumerate(columns.items()):
        stats = [spread(getattr(timings, stage)) for stage in STAGES]
        middle = np.array([s["median"] for s in stats])
        whiskers = [middle - [s["q25"] for s in stats], [s["q75"] for s in stats] - middle]
        axes.bar(np.arange(len(STAGES)) + 0.38 * i, middle, 0.36, yerr=whiskers, capsize=3, label=name)
    axes.set_xticks(np.arange(len(STAGES)) + 0.19, ["image", "prefill", "first token", "each further token"])
    axes.set_ylabel("milliseconds (log)")
    axes.set_yscale("log")
    axes.legend()
    axes.set_title("nano, one picture, CPU, fp32")
    figure.savefig(path, dpi=130)


def measure(bundle: str, checkpoint: Path | None, threads: int | None, repeats: int) -> tuple[dict[str, Timings], str]:
    """Alternate the runtime and PyTorch; the first two rounds are warm-up."""
    engine = QwenVLEngine(bundle, threads=threads)
    reference = torch_once(checkpoint, threads) if checkpoint else None
    picture = Image.open(PICTURE).convert("RGB")
    columns = {"runtime": Timings()} | ({"PyTorch eager": Timings()} if reference else {})
    answer = ""
    for round_ in range(repeats + 2):
        if round_ == 2:
            columns = {name: Timings() for name in columns}
        time.sleep(SETTLE_S)
        answer = runtime_once(engine, picture, columns["runtime"])
        if reference:
            time.sleep(SETTLE_S)
            reference(picture, columns["PyTorch eager"])
    return columns, answer


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = arguments(__doc__)
    parser.add_argument("bundle", nargs="?")
    sizes = ("tiny", "1b", *synthetic_families.PRESETS)
    parser.add_argument("--model", choices=sizes, help="random weights of this size instead of a bundle")
    parser.add_argument("--folder", type=Path, default=Path(".cache/scaled"), help="where --model keeps its weights")
    parser.add_argument("--checkpoint", type=Path, default=None, help="compare with PyTorch on this checkpoint")
    parser.add_argument("--repeats", type=int, help="turns (default 20; with --model 5)")
    parser.add_argument("--threads", type=int, default=None)
    conversation.add_arguments(parser)
    parser.add_argument("--only-memory", action="store_true", help="answer once and print the resident peak in MB")
    options = parser.parse_args()
    if options.bundle is None and not options.model:
        parser.error("give a BUNDLE, or --model")
    options.repeats = options.repeats or (5 if options.model else 20)
    return options


def show(columns: dict[str, Timings]) -> None:
    """Print a table of medians and quartiles."""
    print(f"{'median (quartiles), ms':<24}" + "".join(f"{name:>30}" for name in columns))
    for stage in (*STAGES, "answer_ms"):
        cells = [spread(getattr(t, stage)) for t in columns.values()]
        print(
            f"{stage:<24}"
            + "".join(f"{c['median']:>12.2f} ({c['q25']:.2f} .. {c['q75']:.2f})".rjust(30) for c in cells)
        )


def details_of(columns: dict[str, Timings]) -> dict[str, Any]:
    """Spreads of all stages, and PyTorch's over the runtime's where both were measured."""
    ours = columns["runtime"]
    details: dict[str, Any] = {
        "stages": {n: {s: spread(getattr(t, s)) for s in (*STAGES, "answer_ms")} for n, t in columns.items()}
    }
    if "PyTorch eager" in columns:
        theirs = columns["PyTorch eager"]
        details["pytorch_over_runtime"] = {
            stage: ratio(getattr(ours, stage), getattr(theirs, stage))
            for stage in ("image_ms", "prefill_ms", "ttft_ms", "answer_ms")
        }
        print("PyTorch / runtime:", {k: round(v["median"], 2) for k, v in details["pytorch_over_runtime"].items()})
    details["percentiles"] = {stage: percentiles(getattr(ours, stage)) for stage in (*STAGES, "answer_ms")}
    return details


def headline_of(ours: Timings, opening: list[float], bundle: str) -> dict[str, float]:
    """The headline figures of the runtime's turns."""
    token = percentiles(ours.token_ms)
    return {
        "load_ms": spread(opening)["median"],
        "image_ms": spread(ours.image_ms)["median"],
        "prefill_ms": spread(ours.prefill_ms)["median"],
        "ttft_ms": spread(ours.ttft_ms)["median"],
        "token_p50_ms": token["p50"],
        "token_p90_ms": token["p90"],
        "token_p99_ms": token["p99"],
        "tokens_per_s": 1e3 / float(np.mean(ours.token_ms)),
        "peak_memory_mb": peak_memory_mb(bundle),
    }


def run(options: argparse.Namespace) -> None:
    """Measure a bundle, print a table, write what was asked for."""
    needed_bundle(options.bundle)
    before = conditions()
    opening = load_ms(options.bundle, options.threads)
    columns, answer = measure(options.bundle, options.checkpoint, options.threads, options.repeats)
    print(f"{QUESTION} -> {answer}\n")
    show(columns)
    details = {"question": QUESTION, "answer": answer, "load_ms": spread(opening), "threads": options.threads}
    details |= details_of(columns)
    if options.plot:
        plot(options.plot, columns)
    headline = headline_of(columns["runtime"], opening, options.bundle)
    if options.cases or options.requests:
        print()
        samples = conversation.measure(options)
        headline |= conversation.summary(samples)
        details["conversation"] = conversation.details(options, samples)
    finish(options, before, headline, details)


def main() -> None:
    """Measure a bundle, or random weights of a size."""
    options = read_options()
    if options.model in synthetic_families.PRESETS:
        import families

        families.run_family(options)
    elif options.model:
        import scaled

        scaled.run(options)
    elif options.only_memory:
        answer_and_print_peak(options.bundle)
    else:
        run(options)


if __name__ == "__main__":
    main()
