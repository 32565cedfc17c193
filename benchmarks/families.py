"""`latency.py --model qwen3-vl-2b` and the like: answers of a published size of Qwen2-VL and later, on random weights.

One picture of 640 x 480 pixels and a question of 30 tokens, int4, in a process of its own; then another question of as
many tokens about the same picture, in a conversation of its own. The tower is compared with transformers' modules in
PyTorch on the same weights, in float32 and bfloat16, and the faster of the two counts. What a token reads (weights and
cache) over its time is given as a share of the limit of reading (read_limit.py), the best of before and after.
"""

from __future__ import annotations

import argparse
import gc
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
_READS = 3
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


def torch_ms(source: Checkpoint, name: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of pictures by PyTorch's type; the first of each is warm-up."""
    found = {}
    for label, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        once = eager_tower(source, name, dtype)
        found[label] = [once() for _ in range(repeats + 1)][1:]
        del once
        gc.collect()
    return found


def measure(options: argparse.Namespace, source: Path, bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details."""
    reader = reader_for([decode_bytes(bundle, 0)], options.threads)
    reads = [read_gb_s(reader) for _ in range(_READS)]
    arguments = map(str, (bundle.path, options.threads or 0, options.repeats, NEW_TOKENS))
    asked = run([sys.executable, "-c", _ASK, *arguments])
    reads += [read_gb_s(reader) for _ in range(_READS)]
    del reader
    turns = json.loads(asked["output"])
    stages = {
        stage: spread([turn[stage] for turn in turns])
        for stage in ("ttft_ms", "vision_ms", "prefill_ms", "second_ttft_ms")
    }
    tokens = [ms for turn in turns for ms in turn["token_ms"]]
    eager = torch_ms(Checkpoint.open(source), options.model, options.repeats)
    fastest = min(np.median(times) for times in eager.values())
    moved = decode_bytes(bundle, turns[0]["prompt_tokens"])
    read = max(reads)
    headline = {
        "family": options.model,
        "ttft_ms": stages["ttft_ms"]["median"],
        "vision_ms": stages["vision_ms"]["median"],
        "prefill_ms": stages["prefill_ms"]["median"],
        "tokens_per_s": 1e3 / float(np.median(tokens)),
        "decode_bandwidth_share": moved / float(np.median(tokens)) / 1e6 / read,
        "vision_vs_torch": float(fastest) / stages["vision_ms"]["median"],
        "second_question_share": stages["second_ttft_ms"]["median"] / stages["ttft_ms"]["median"],
        "peak_memory_mb": asked["peak_anonymous_gb"] * 1e3,
    }
    details = {
        "precision": "int4",
        "picture": SIZE,
        "tokens": {key: turns[0][key] for key in ("prompt_tokens", "image_tokens", "second_computed")},
        "stages": stages,
        "token_ms": spread(tokens),
        "read_gb_s": spread(reads),
        "torch_vision_ms": {label: spread(times) for label, times in eager.items()},
        "peak_resident_mb": asked["peak_resident_gb"] * 1e3,
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
