"""Profile of a token and of a prompt: microseconds by kind of operator beside the limit of reading their weights.

    python benchmarks/token_profile.py BUNDLE [BUNDLE ...] [--prompt 512] [--steps 16] [--repeats 5] [--threads N]
        [--json FILE]

Bundles take turns, each with a plain session and with one that ONNX Runtime profiles; the first turn is warm-up. Every
figure is a median with quartiles. `plain` is a call without profiling, from Python. Of the profiled call:

    products NAME   the operators that multiply with the weights NAME, norms, gates and residuals in them included
    attention       rotary embedding, cache and attention
    rest            all other operators
    threads         of all operators, the time in which work was handed to other threads or waited for
    between         from one operator to the next
    call            from Python to ONNX Runtime and back

`limit` is the time in which the bytes of a row (its weights, the cache of `attention`) are read as fast as this machine
can at all (read_limit.py); `share` is the limit's part of the row's time. Prompts have billions of multiply-adds per
second instead, since they read their weights once for all tokens.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/synthetic_checkpoint, through peer_models

import numpy as np
import onnx
import onnxruntime as ort
from common import arguments, conditions, finish, needed_bundle, spread
from operators import profiled
from peer_models import Ours
from read_limit import cache_bytes, decode_bytes, read_bytes, read_gb_s, reader_for

from qwenvl_edge.bundle.bundle import Bundle

ATTENTION = {"CachedAttention", "GroupQueryAttention", "Attention"}
WAITING = ("Distribution", "DistributionEnqueue", "Wait", "WaitRevoke")
LAST = ("attention", "rest", "threads", "between", "call")
Parts = dict[str, float]


class Products:
    """Operators of a decoder that multiply with weights, the names of the weights, and their sizes."""

    def __init__(self, bundle: Bundle, dialect: str):
        graph = onnx.load(bundle.file(bundle.manifest.graphs.decoder[dialect]), load_external_data=False).graph
        stored = read_bytes(graph, bundle, dialect)
        self.names: dict[str, str] = {}  # by operator
        self.bytes: Parts = defaultdict(float)  # by name, as the others
        self.weights: Parts = defaultdict(float)
        for node in graph.node:
            attributes = {each.name: each.i for each in node.attribute}
            if "block_size" not in attributes:
                continue
            matrices = [name for name in node.input if name in stored and re.search(r"\.int[48]$", name)]
            label = self.names[node.name] = f"products {_label(matrices[0])}"
            self.bytes[label] += sum(stored.get(name, 0) for name in node.input)
            self.weights[label] += len(matrices) * attributes["K"] * attributes["N"]


def _label(weight: str) -> str:
    """The name of a weight without layer and precision."""
    return re.sub(r"^.*\.\d+\.|\.weight\.int\d$|\.int\d$", "", weight)


class Subject:
    """A bundle with a plain and a profiled session, whose profile is read at the end."""

    def __init__(self, plain: Ours, measured: Ours, session: ort.InferenceSession):
        self.plain, self.measured, self._session = plain, measured, session
        self.products = Products(plain.bundle, plain.backend.dialect)
        self.times: dict[str, list[float]] = {"prefill": [], "decode": []}
        self.rows: Parts = {}  # of the last prompt, by products
        self._calls: list[tuple[str, float, bool]] = []  # stage, milliseconds, kept

    def turn(self, prompt: int, steps: int, *, kept: bool) -> None:
        """One prompt and `steps` tokens in both sessions; warm-up unless it is `kept`."""
        found = self.plain.turn(prompt, steps)
        if kept:
            self.times["prefill"].append(found["prefill"])
            self.times["decode"].append(float(np.median(found["decode"])))
        found = self.measured.turn(prompt, steps)
        self._calls.append(("prefill", found["prefill"], kept))
        self._calls += [("decode", ms, kept) for ms in found["decode"]]

    def parts(self) -> dict[str, dict[str, Any]]:
        """By stage and kind: microseconds."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        runs = [event for event in events if event["name"] == "model_run"]
        nodes = [event for event in events if event["name"].endswith("_kernel_time")]
        found: dict[str, dict[str, list[float]]] = {stage: defaultdict(list) for stage in self.times}
        at = 0
        for run, (stage, ms, kept) in zip(runs, self._calls, strict=True):
            spent: Parts = dict.fromkeys((*self.products.bytes, *LAST), 0.0)
            while at < len(nodes) and nodes[at]["ts"] < run["ts"] + run["dur"]:
                self._add(nodes[at], spent, stage)
                at += 1
            spent["between"] = run["dur"] - sum(spent.values())
            spent["call"] = ms * 1e3 - run["dur"]
            for kind, us in spent.items() if kept else ():
                found[stage][kind].append(us)
        return {stage: {kind: spread(values) for kind, values in kinds.items()} for stage, kinds in found.items()}

    def _add(self, node: dict[str, Any], spent: Parts, stage: str) -> None:
        """Add the time of one operator's run to that of its kind, and what it waited to that of the threads."""
        label = self.products.names.get(node["name"].removesuffix("_kernel_time"))
        kind = label or ("attention" if node["args"]["op_name"] in ATTENTION else "rest")
        threads = node["args"].get("thread_scheduling_stats") or {}  # an empty text where there is one thread
        main = threads.get("main_thread", {})
        waited = min(sum(main.get(each, 0) for each in WAITING), node["dur"])
        spent[kind] += node["dur"] - waited
        spent["threads"] += waited
        if label and stage == "prefill":
            ((shape,),) = (each.values() for each in node["args"]["output_type_shape"])
            self.rows[label] = math.prod(shape[:-1])  # of the head one: a prompt has logits after its last token


@contextmanager
def profiles(bundles: Sequence[Bundle], options: Any) -> Iterator[list[Subject]]:
    """Open each bundle twice; the profiles' files last as long as the block."""
    context = options.prompt + options.steps
    plain = [Ours(bundle, options.threads, context) for bundle in bundles]
    with profiled() as sessions:
        yield [Subject(each, Ours(each.bundle, options.threads, context), sessions[-1]) for each in plain]


def measure(subjects: Sequence[Subject], options: Any) -> float:
    """Let the bundles take turns; return the limit of reading, GB/s."""
    sizes = [decode_bytes(subject.plain.bundle, options.prompt) for subject in subjects]
    reader, limit = reader_for(sizes, options.threads), 0.0
    for number in range(options.repeats + 1):
        for subject in subjects:
            limit = max(limit, read_gb_s(reader))
            subject.turn(options.prompt, options.steps, kept=number > 0)
        print(f"turn {number} of {options.repeats}", file=sys.stderr)
    return limit


def table(subject: Subject, options: Any, gb_s: float) -> dict[str, Any]:
    """Print and return what is known of each stage of a bundle."""
    bundle, found = subject.plain.bundle, subject.parts()
    sizes = subject.products.bytes | {"attention": cache_bytes(bundle, options.prompt)}
    details: dict[str, Any] = {"backend": subject.plain.backend.describe(), "limit_gb_s": gb_s}
    for stage, kinds in found.items():
        plain = spread([ms * 1e3 for ms in subject.times[stage]])
        print(f"\n{bundle.path.name}, {stage}: plain {plain['median']:.0f} us")
        rows = details[stage] = {"plain": plain} | kinds
        for kind, row in kinds.items():
            row["part"] = row["median"] / sum(each["median"] for each in kinds.values())
            note = ""
            if stage == "prefill" and kind in subject.products.weights:
                row["g_per_s"] = subject.products.weights[kind] * subject.rows[kind] / row["median"] / 1e3
                note = f"{row['g_per_s']:>8.0f} G/s"
            elif stage == "decode" and kind in sizes:
                row["limit"] = sizes[kind] / gb_s / 1e3
                row["share"] = row["limit"] / row["median"]
                note = f"limit {row['limit']:>8.0f}   share {row['share']:.2f}"
            print(f"  {kind:<26}{row['median']:>10.0f} us {row['part']:>6.1%}   {note}")
        if stage == "decode":
            rows["limit"] = decode_bytes(bundle, options.prompt) / gb_s / 1e3
            print(
                f"  limit of weights and cache {rows['limit']:.0f} us, {rows['limit'] / plain['median']:.2f} of plain"
            )
    return details


def main() -> None:
    """Measure in turns, print a table per bundle, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    before = conditions()
    bundles = [Bundle.open(needed_bundle(path)) for path in options.bundles]
    with profiles(bundles, options) as subjects:
        limit = measure(subjects, options)
        details = {subject.plain.bundle.path.name: table(subject, options, limit) for subject in subjects}
    headline = {
        f"{name}: {key}": value
        for name, each in details.items()
        for key, value in (
            ("token_us", each["decode"]["plain"]["median"]),
            ("limit_us", each["decode"]["limit"]),
            ("prompt_ms", each["prefill"]["plain"]["median"] / 1e3),
        )
    }
    settings = {key: getattr(options, key) for key in ("prompt", "steps", "repeats", "threads")}
    finish(options, before, headline, details | {"settings": settings})


if __name__ == "__main__":
    main()
