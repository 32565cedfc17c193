"""Cost of the answers of a bundle of any size: memory, time, the share of the read bandwidth at a token, and its
pictures next to PyTorch's on the same weights. A part of export_scale.py.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ratio, spread
from processes import run
from read_limit import decode_bytes, read_gb_s, reader_for

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork

PICTURES = 5
_READS = 5
_ASK = """
import json, sys, time
start = time.perf_counter()
import numpy as np
from qwenvl_edge import QwenVLEngine
bundle, max_context, new_tokens, pictures = sys.argv[1], *map(int, sys.argv[2:])
engine = QwenVLEngine(bundle, max_context=max_context)
load = time.perf_counter() - start
random = np.random.default_rng(0)
image_ms, stats = [], None
for number in range(1 + pictures):  # the first one reads the weights from the file
    frame = random.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    tokens = 1 if stats else new_tokens
    reply = engine.chat("What is in the picture?", images=[frame], do_sample=False, lookup=False,
                        max_new_tokens=tokens)
    stats = stats or reply.stats
    image_ms.append(reply.stats.image_ms)
print(json.dumps({"load_s": load, "first_image_s": image_ms[0] / 1e3, "image_ms": image_ms[1:],
                  "prefill_s": stats.prefill_ms / 1e3, "prompt_tokens": stats.prompt_tokens,
                  "token_ms": list(stats.token_ms)}))
"""


def answer(checkpoint: Path, bundle: Path, *, max_context: int, new_tokens: int) -> dict[str, Any]:
    """Figures of answers about random pictures, in a process of its own without PyTorch, and of PyTorch's pictures.

    bandwidth_share: bytes that a token reads (weights and the prompt's cache) over its time, as a share of the limit of
    reading (read_limit.py), the best of before and after. vision_vs_torch: PyTorch's time of a picture over the
    bundle's, by PyTorch's type; the processes run one after the other.
    """
    opened = Bundle.open(bundle)
    reader = reader_for([decode_bytes(opened, 0)], None)
    reads = [read_gb_s(reader) for _ in range(_READS)]
    asked = run([sys.executable, "-c", _ASK, str(bundle), *map(str, (max_context, new_tokens, PICTURES))])
    reads += [read_gb_s(reader) for _ in range(_READS)]
    del reader
    found = json.loads(asked["output"])
    tokens, pictures = found.pop("token_ms"), found.pop("image_ms")
    moved = decode_bytes(opened, found["prompt_tokens"])
    result = {key: asked[key] for key in ("peak_anonymous_gb", "peak_resident_gb")} | found
    result |= {"token_ms": spread(tokens), "image_ms": spread(pictures), "read_gb_s": spread(reads)}
    read = max(reads)
    result["bandwidth_share"] = spread([moved / ms / 1e6 / read for ms in tokens])
    result["torch_image_ms"], result["vision_vs_torch"] = {}, {}
    for dtype in ("float32", "bfloat16"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            eager = pool.submit(_torch_pictures, checkpoint, dtype).result()
        result["torch_image_ms"][dtype] = spread(eager)
        result["vision_vs_torch"][dtype] = ratio(pictures, eager)
    return result


@torch.inference_mode()
def _torch_pictures(checkpoint: Path, dtype: str) -> list[float]:
    """Milliseconds of pictures in PyTorch eager, of which only the picture side is loaded."""
    source = Checkpoint.open(checkpoint)
    with torch.device("meta"):
        visual = QwenVLNetwork(source.family.config).transformer.visual
    kind: torch.dtype = getattr(torch, dtype)
    state = {name: source.tensor(f"transformer.visual.{name}").to(kind) for name in visual.state_dict()}
    visual.load_state_dict(state, assign=True)
    visual.eval()
    side = source.family.config.vision.image_size
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, side, side))).to(kind)
    times = []
    for _ in range(1 + PICTURES):
        started = time.perf_counter()
        visual(pixels)
        times.append((time.perf_counter() - started) * 1e3)
    return times[1:]
