"""`latency.py --model qwen3-vl-2b` and the like: answers of a published size of Qwen2-VL and later, on random weights.

One picture of 640 x 480 pixels and a question of 30 tokens, int4, in a process of its own; then another question of as
many tokens about the same picture, in a conversation of its own. The tower is compared with transformers' modules in
PyTorch on the same weights, in float32 and bfloat16, and the faster of the two counts. What a token reads (weights and
cache) over its time is given as a share of the limit of reading (read_limit.py), the better of before and after. All
take turns, and ratios are of one turn each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import conditions, finish, spread
from processes import run
from read_limit import decode_bytes, read_gb_s, reader_for

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.dynamic_vl.reference import Published
from qwenvl_edge_export.families.dynamic_vl.tensors import VISUAL
from qwenvl_edge_export.options import ExportPrecision
from tools.synthetic_checkpoint import write
from tools.synthetic_families import preset

SIZE = (640, 480)
NEW_TOKENS = 24
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ASK = """
import json, sys
import numpy as np
from qwenvl_edge import QwenVLEngine
engine = QwenVLEngine(sys.argv[1], max_context=1024, threads=int(sys.argv[2]) or None)
questions = "What is in the picture, " + "and " * 8 + "where?", "How many things are here, " + "or " * 8 + "none?"
pictures = np.random.default_rng(0).integers(0, 256, (int(sys.argv[3]) + 1, 480, 640, 3), dtype=np.uint8)
ask = lambda picture, question: engine.chat(question, images=[picture], do_sample=False, lookup=False,
                                            max_new_tokens=int(sys.argv[4])).stats
found = []
for picture in pictures:  # the first one reads the weights from the file
    first, second = (ask(picture, question) for question in questions)
    found.append({"ttft_ms": first.ttft_ms, "vision_ms": first.image_ms, "prefill_ms": first.prefill_ms,
                  "token_ms": list(first.token_ms), "second_ttft_ms": second.ttft_ms,
                  "second_computed": second.prompt_tokens - second.reused_tokens,
                  "prompt_tokens": first.prompt_tokens, "image_tokens": first.image_tokens})
print(json.dumps(found[1:]))
"""


def eager_tower(source: Checkpoint, name: str, dtype: torch.dtype) -> Callable[[], float]:
    """Milliseconds of one picture in transformers' tower with the checkpoint's weights."""
    family = source.family
    tower = Published(family.name, preset(name)).tower()
    state = {key: source.tensor(f"{VISUAL}.{key}").to(dtype) for key in tower.state_dict()}
    tower.load_state_dict(state, assign=True)
    tower.requires_grad_(False).eval()
    vision = family.config.vision
    rows, columns = (round(side / vision.factor) * vision.merge_size for side in reversed(SIZE))
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(rows * columns, vision.patch_values, generator=random).to(dtype)
    grid = torch.tensor([[1, rows, columns]])

    @torch.inference_mode()
    def once() -> float:
        started = time.perf_counter()
        tower(pixels, grid_thw=grid)
        return (time.perf_counter() - started) * 1e3

    return once


class Turns:
    """Subjects that take turns: an engine in a process of its own, PyTorch's tower by type, reads of memory."""

    def __init__(self, options: argparse.Namespace, source: Path, bundle: Bundle) -> None:
        reader = reader_for([decode_bytes(bundle, 0)], options.threads)
        checkpoint = Checkpoint.open(source)
        towers = {label: eager_tower(checkpoint, options.model, dtype) for label, dtype in _TYPES.items()}
        for tower in towers.values():
            tower()  # warm-up
        command = [sys.executable, "-c", _ASK, str(bundle.path), str(options.threads or 0), "2", str(NEW_TOKENS)]
        self.read_gb_s = [read_gb_s(reader)]
        self.asked: list[dict[str, Any]] = []
        self.torch_ms: dict[str, list[float]] = {label: [] for label in towers}
        self.peak_anonymous_gb = self.peak_resident_gb = 0.0
        for _ in range(options.repeats):
            ended = run(command)
            self.asked.append(json.loads(ended["output"])[-1])  # two pictures before it are warm-up
            self.read_gb_s.append(read_gb_s(reader))
            for label, tower in towers.items():
                self.torch_ms[label].append(tower())
            self.peak_anonymous_gb = max(self.peak_anonymous_gb, ended["peak_anonymous_gb"])
            self.peak_resident_gb = max(self.peak_resident_gb, ended["peak_resident_gb"])

    def stage(self, name: str) -> list[float]:
        """Milliseconds of a stage, by turn."""
        return [turn[name] for turn in self.asked]

    def bandwidth_shares(self, moved: int) -> list[float]:
        """Share of the limit that tokens of `moved` bytes reach, by turn; the better read beside the turn counts."""
        limits = [max(pair) for pair in itertools.pairwise(self.read_gb_s)]
        tokens = [float(np.median(turn["token_ms"])) for turn in self.asked]
        return [moved / ms / 1e6 / limit for ms, limit in zip(tokens, limits, strict=True)]

    def against_torch(self) -> list[float]:
        """Time of the faster of PyTorch's types over that of the picture here, by turn."""
        fastest = min(self.torch_ms.values(), key=lambda times: float(np.median(times)))
        return [theirs / ours for theirs, ours in zip(fastest, self.stage("vision_ms"), strict=True)]


def measure(options: argparse.Namespace, source: Path, bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details."""
    turns = Turns(options, source, bundle)
    first = turns.asked[0]
    stages = {stage: spread(turns.stage(stage)) for stage in ("ttft_ms", "vision_ms", "prefill_ms", "second_ttft_ms")}
    tokens = [ms for turn in turns.asked for ms in turn["token_ms"]]
    both = zip(turns.stage("second_ttft_ms"), turns.stage("ttft_ms"), strict=True)
    ratios = {
        "decode_bandwidth_share": spread(turns.bandwidth_shares(decode_bytes(bundle, first["prompt_tokens"]))),
        "vision_vs_torch": spread(turns.against_torch()),
        "second_question_share": spread([second / ttft for second, ttft in both]),
    }
    headline = {
        "family": options.model,
        "ttft_ms": stages["ttft_ms"]["median"],
        "vision_ms": stages["vision_ms"]["median"],
        "prefill_ms": stages["prefill_ms"]["median"],
        "tokens_per_s": 1e3 / float(np.median(tokens)),
        **{name: found["median"] for name, found in ratios.items()},
        "peak_memory_mb": turns.peak_anonymous_gb * 1e3,
    }
    details = {
        "precision": "int4",
        "picture": SIZE,
        "tokens": {key: first[key] for key in ("prompt_tokens", "image_tokens", "second_computed")},
        "stages": stages,
        "token_ms": spread(tokens),
        "ratios": ratios,
        "read_gb_s": spread(turns.read_gb_s),
        "torch_vision_ms": {label: spread(times) for label, times in turns.torch_ms.items()},
        "peak_resident_mb": turns.peak_resident_gb * 1e3,
        "threads": options.threads,
    }
    return headline, details


def run_family(options: argparse.Namespace) -> None:
    """Make what is not there yet, measure, print, write what was asked for."""
    if options.threads:
        torch.set_num_threads(options.threads)
    source, place = options.folder / f"checkpoint-{options.model}", options.folder / f"{options.model}-int4"
    if not source.exists():
        write(source, options.model)
    if not place.exists():
        export(source, place, precision=ExportPrecision.choose("int4"), check=False)
    before = conditions()
    headline, details = measure(options, source, Bundle.open(place))
    print(json.dumps(details, indent=1))
    finish(options, before, headline, details)
