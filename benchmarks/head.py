"""Loss and gain of 4 instead of 8 bits for lm_head beside a 4-bit decoder.

    python benchmarks/head.py [--folder DIR] [--repeats 40] [--json FILE]

models/nano is exported with either head, its decoder calibrated on samples of its own kind or rounded to nearest, and
answers questions that calibration did not see (teacher-forced, in ONNX Runtime) on float features of the pictures:
mean KL divergence from PyTorch, share of equal best tokens. Bytes of larger models follow from their configuration; the
time of one token's lm_head is measured on random weights of the 1b preset's shape, the two heads in turns. Bundles are
taken from DIR where they are there already, so that a second run takes seconds.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/nano makes the samples

import numpy as np
import torch
from common import arguments, conditions, finish, ratio, spread
from crosscheck_modelopt import SAMPLES, Sample, Subject
from matmul import blocks
from scaled import SETTLE_S

from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.families.qwen_vl.family import QwenVLExport
from qwenvl_edge_export.graphs.roles import Decoder
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization.results import kept_bytes
from qwenvl_edge_export.verification.limits import FloatArray, divergence
from tools.nano.calibration import write
from tools.synthetic_checkpoint import preset

NANO = Path(__file__).parent.parent / "models" / "nano"
HEADS = ("int8", "int4")
PRESETS = ("1b", "full")
TIMED = "1b"


def exported(folder: Path, head: str, calibrated: bool) -> Bundle:
    """nano's bundle, made if it is not there."""
    path = folder / f"{head}-{'calibrated' if calibrated else 'rounded'}"
    if path.exists():
        return Bundle.open(path)
    samples = write(folder / "samples", SAMPLES) if calibrated else False
    precision = ExportPrecision.choose("int4", head=head)
    return export(NANO, path, precision=precision, calibration=samples, check=False)


def logits(backend: OnnxRuntimeBackend, sample: Sample) -> FloatArray:
    """[rows, V] of one prompt and its answer, the rows that crosscheck_modelopt.logits yields."""
    length = len(sample.embeds)
    cache = backend.new_cache(1, length)
    rotary = backend.family.positions(sample.first + 1).rows(0, length)
    rows = np.arange(sample.first, length - 1)[None]
    return backend.decode(cache, sample.embeds[None].numpy(), rotary, np.zeros(1, np.int64), rows)[0]


def losses(subject: Subject, bundle: Bundle) -> dict[str, float]:
    """Losses of a bundle on the unseen questions."""
    backend = OnnxRuntimeBackend(bundle)
    pairs = [
        (logits(backend, sample), wanted)
        for sample, wanted in zip(subject.compared["unseen"], subject.wanted["unseen"], strict=True)
    ]
    kl = [divergence(*pair) for pair in pairs]
    same = np.concatenate([found.argmax(-1) == wanted.argmax(-1) for found, wanted in pairs])
    return {
        "kl_mean": float(np.mean(kl)),
        "kl_error": float(np.std(kl, ddof=1) / math.sqrt(len(kl))),
        "kl_worst": max(kl),
        "top1": float(same.mean()),
    }


def sizes(decoder: Decoder) -> dict[str, dict[str, float]]:
    """MB of lm_head and of all linear layers of the decoder, which a token reads, by head."""
    weights, found = list(decoder.linear_weights()), {}
    for head in HEADS:
        chosen = (
            ExportPrecision.choose("int4", head=head).fitted({weight.name: weight.shape for weight in weights}).decoder
        )
        stored = [
            kept_bytes(chosen.format(weight.name, head=weight is decoder.head.weight), weight.shape, 4) / 1e6
            for weight in weights
        ]
        found[head] = {"head_mb": stored[-1], "decoder_mb": sum(stored)}
    return found


def times(decoder: Decoder, repeats: int) -> dict[str, Any]:
    """Milliseconds of one token's lm_head; the first turn is warm-up."""
    random = np.random.default_rng(0)
    weight = random.normal(size=decoder.head.weight.shape).astype(np.float32)
    forms = {"int8": blocks(weight, 8, 128), "int4": blocks(weight, 4, 128)}
    x = random.normal(size=(1, decoder.hidden_size)).astype(np.float32)
    taken: dict[str, list[float]] = {head: [] for head in HEADS}
    for number in range(repeats + 1):
        for head, form in forms.items():
            time.sleep(SETTLE_S)
            started = time.perf_counter()
            form.run(None, {"x": x})
            if number:
                taken[head].append((time.perf_counter() - started) * 1e3)
    return {head: spread(each) for head, each in taken.items()} | {"ratio": ratio(taken["int4"], taken["int8"])}


@torch.no_grad()
def main() -> None:
    """Measure, print a table, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="where the bundles are kept; by default a temporary folder")
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    before = conditions()
    details: dict[str, Any] = {"questions": SAMPLES, "nano": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bundles = {
            (way, head): exported(folder, head, way == "calibrated")
            for way in ("calibrated", "rounded")
            for head in HEADS
        }
        subject = Subject(NANO, folder)
        for (way, head), bundle in bundles.items():
            found = details["nano"].setdefault(way, {})[head] = losses(subject, bundle)
            print(f"{way:<12}{head:<6}KL {found['kl_mean']:.4f} ± {found['kl_error']:.4f}  top-1 {found['top1']:.4f}")
    families: dict[str, ExportFamily] = {"nano": subject.checkpoint.family}
    families |= {name: QwenVLExport.from_dict(preset(name)) for name in PRESETS}
    details["sizes"] = {name: sizes(family.decoder) for name, family in families.items()}
    details["head_ms"] = {TIMED: times(families[TIMED].decoder, options.repeats)}
    for name, each in details["sizes"].items():
        print(f"{name:<6}" + "  ".join(f"{h}: {v['head_mb']:.1f} of {v['decoder_mb']:.1f} MB" for h, v in each.items()))
    headline = {
        "kl": {head: found["kl_mean"] for head, found in details["nano"]["calibrated"].items()},
        "top1": {head: found["top1"] for head, found in details["nano"]["calibrated"].items()},
        "decoder_mb_1b": {head: found["decoder_mb"] for head, found in details["sizes"]["1b"].items()},
        "head_ms_1b": {head: details["head_ms"][TIMED][head]["median"] for head in HEADS},
    }
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
