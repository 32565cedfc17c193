"""`latency.py --model 1b`: int4 and int8 bundles next to PyTorch eager on the same random weights of a preset's size.

128 weights share a scale, as by default, or 32. Each subject gets one picture, a prompt of PROMPT embeddings and STEPS
further tokens, in turns; ratios are of one turn each. PyTorch runs in bfloat16 beside all bundles and then in float32
beside the default ones, so that no more than 8 GB are held, and each stage is compared with whichever is faster there.
The default bundles are profiled afterwards.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from common import conditions, finish, milliseconds, ratio, spread
from operators import last_runs, profiled
from read_limit import decode_bytes, read_gb_s, reader_for

from qwenvl_edge._core import MemoryReader
from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.families import open_family
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork
from qwenvl_edge_export.options import ExportPrecision
from tools.synthetic_checkpoint import write

FloatArray = npt.NDArray[np.float32]
BUNDLES = {"int4": ("int4", None), "int4-32": ("int4", 32), "int8": ("int8", None), "int8-32": ("int8", 32)}
DEFAULTS = ("int4", "int8")
PHASES = {"torch-bf16": (torch.bfloat16, tuple(BUNDLES)), "torch-fp32": (torch.float32, DEFAULTS)}
PROMPT, STEPS = 288, 8  # a picture's 256 positions and a short question; tokens timed a turn
STAGES = ("vision", "prefill", "decode")
Timings: TypeAlias = dict[str, dict[str, list[float]]]
READ = "read_gb_s"
SETTLE_S = 0.1  # the worker threads of the one before go on spinning for a while
_FIRST_TOKEN = """
import time, sys
import numpy as np
from qwenvl_edge import QwenVLEngine
threads = int(sys.argv[2]) or None
engine = QwenVLEngine(sys.argv[1], max_context=512, threads=threads)
engine.chat("What is it?", images=[np.zeros((448, 448, 3), np.uint8)], do_sample=False, max_new_tokens=1)
"""


class Subject(Protocol):
    """Something that encodes a picture, then prefills a prompt, then decodes tokens after it, from host to host."""

    def vision(self, pixels: FloatArray) -> FloatArray:
        """One picture [1, 3, S, S] -> features [1, Q, H]."""

    def prefill(self, embeds: FloatArray) -> FloatArray:
        """A prompt [1, T, H] into an empty cache -> logits [1, 1, V] after it."""

    def decode(self, embed: FloatArray) -> FloatArray:
        """One token [1, 1, H] after it -> logits [1, 1, V]."""


class Runtime:
    """A bundle in a backend, prefilled in one call."""

    def __init__(self, backend: OnnxRuntimeBackend | OnnxRuntimeCudaBackend, bundle: Bundle, capacity: int):
        self.backend, self.family = backend, open_family(bundle.manifest)
        self.cache = backend.new_cache(1, capacity)

    def vision(self, pixels: FloatArray) -> FloatArray:
        """See Subject."""
        return self.backend.encode_pixels(pixels)

    def prefill(self, embeds: FloatArray) -> FloatArray:
        """See Subject."""
        self.positions = self.family.positions(embeds.shape[1])
        return self._decode(embeds, 0)

    def decode(self, embed: FloatArray) -> FloatArray:
        """See Subject."""
        return self._decode(embed, self.cache.length)

    def _decode(self, embeds: FloatArray, start: int) -> FloatArray:
        tokens = embeds.shape[1]
        rotary = self.positions.rows(start, tokens)
        return self.backend.decode(self.cache, embeds, rotary, np.array([start]), np.array([[tokens - 1]]))


class Eager:
    """PyTorch as it comes, with a growing cache."""

    def __init__(self, model: QwenVLNetwork, device: str = "cpu"):
        self.model = model
        self.device = device
        self.dtype = model.lm_head.weight.dtype

    @torch.inference_mode()
    def vision(self, pixels: FloatArray) -> FloatArray:
        """See Subject."""
        return self._host(self.model.encode_images(self._there(pixels)))

    @torch.inference_mode()
    def prefill(self, embeds: FloatArray) -> FloatArray:
        """See Subject."""
        with torch.device(self.device):
            logits, self.cache = self.model.decode(self._there(embeds), last=1)
        return self._host(logits)

    @torch.inference_mode()
    def decode(self, embed: FloatArray) -> FloatArray:
        """See Subject."""
        with torch.device(self.device):
            logits, self.cache = self.model.decode(self._there(embed), self.cache, alpha=1.0)
        return self._host(logits)

    def _there(self, value: FloatArray) -> torch.Tensor:
        return torch.from_numpy(value).to(self.device, self.dtype)

    def _host(self, value: torch.Tensor) -> FloatArray:
        array: FloatArray = value.float().cpu().numpy()
        return array


def prepare(folder: Path, preset: str) -> tuple[Checkpoint, dict[str, Bundle]]:
    """The checkpoint and its bundles in `folder`, made where they are not there yet."""
    source = folder / f"checkpoint-{preset}"
    if not (source / "model.safetensors.index.json").exists():
        write(source, preset, pickled=False)
    bundles = {}
    for name, (precision, block) in BUNDLES.items():
        path = folder / f"{preset}-{precision}-{block or 'default'}"
        chosen = ExportPrecision.choose(precision, block=block)
        made = path.exists() or export(source, path, precision=chosen, check=False)
        bundles[name] = Bundle.open(path) if made is True else made
    return Checkpoint.open(source), bundles


def samples_of(side: int, hidden: int, prompt: int = PROMPT) -> dict[str, FloatArray]:
    """A picture, a prompt and a token of normal values, always the same ones."""
    random = np.random.default_rng(0)
    shapes = {"pixels": (1, 3, side, side), "prompt": (1, prompt, hidden), "token": (1, 1, hidden)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def turn(subject: Subject, samples: dict[str, FloatArray], timings: dict[str, list[float]], steps: int = STEPS) -> None:
    """One picture, one prompt, some tokens: milliseconds, of a token the median."""

    timings["vision"].append(milliseconds(lambda: subject.vision(samples["pixels"])))
    timings["prefill"].append(milliseconds(lambda: subject.prefill(samples["prompt"])))
    tokens = [milliseconds(lambda: subject.decode(samples["token"])) for _ in range(steps)]
    timings["decode"].append(float(np.median(tokens)))


def first_token_s(bundle: Bundle, threads: int | None) -> float:
    """Seconds from the start of a process to the first token about a picture, with the files in the page cache."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _FIRST_TOKEN, str(bundle.path), str(threads or 0)], check=True)
    return time.perf_counter() - started


def measure(
    subjects: dict[str, Subject], samples: dict[str, FloatArray], repeats: int, reader: MemoryReader
) -> Timings:
    """Milliseconds of every subject and stage, a value a turn, and under READ the limit of reading around it, GB/s.

    Neighbours on the same machine take bandwidth, now more, now less, so each turn has its own. The first is warm-up.
    """
    timings: Timings = {}
    for number in range(repeats + 1):
        if number < 2:
            timings = {name: {stage: [] for stage in (*STAGES, READ)} for name in subjects}
        for name, subject in subjects.items():
            time.sleep(SETTLE_S)
            before = read_gb_s(reader)
            time.sleep(SETTLE_S)
            turn(subject, samples, timings[name])
            time.sleep(SETTLE_S)
            timings[name][READ].append(max(before, read_gb_s(reader)))
        print(f"turn {number} of {repeats}", file=sys.stderr)
    return timings


def measure_phases(
    checkpoint: Checkpoint, bundles: dict[str, Bundle], samples: dict[str, FloatArray], options: argparse.Namespace
) -> dict[str, Timings]:
    """`measure`, once beside each PyTorch, by its name."""
    found = {}
    for eager, (dtype, names) in PHASES.items():
        subjects: dict[str, Subject] = {
            name: Runtime(OnnxRuntimeBackend(bundles[name], threads=options.threads), bundles[name], PROMPT + STEPS)
            for name in names
        }
        subjects[eager] = Eager(QwenVLNetwork.load(checkpoint.family.config, checkpoint.tensor, dtype))
        gc.collect()
        reader = reader_for((decode_bytes(bundles[name], PROMPT) for name in names), options.threads)
        found[eager] = measure(subjects, samples, options.repeats, reader)
        del subjects
        gc.collect()
    return found


def operators(bundle: Bundle, samples: dict[str, FloatArray], threads: int | None) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage ("run") and of its operators that take most, once warm."""
    with profiled() as sessions:
        subject = Runtime(OnnxRuntimeBackend(bundle, threads=threads), bundle, PROMPT + STEPS)
        for _ in range(2):
            turn(subject, samples, {stage: [] for stage in STAGES}, steps=2)
        (vision,), (prefill, _, decode) = last_runs(sessions[-2], 1), last_runs(sessions[-1], 3)
    return {"vision": vision, "prefill": prefill, "decode": decode}


def compare(phases: dict[str, Timings], bundles: dict[str, Bundle]) -> dict[str, Any]:
    """Ratios to the faster PyTorch of each stage, and the shares of the bandwidth, of one turn each."""
    ratios: dict[str, Any] = {"faster": {}}
    for stage in STAGES:
        eager = min(phases, key=lambda name: np.median(phases[name][name][stage]))
        ratios["faster"][stage] = eager
        timings = phases[eager]
        for name in PHASES[eager][1]:
            ratios[f"{stage}_{name}"] = ratio(timings[name][stage], timings[eager][stage])
    for name, bundle in bundles.items():
        turns = phases["torch-bf16"][name]
        pairs = zip(turns["decode"], turns[READ], strict=True)
        moved = decode_bytes(bundle, PROMPT)
        ratios[f"bandwidth_share_{name}"] = spread([moved / ms / 1e6 / read for ms, read in pairs])
    return ratios


def run(options: argparse.Namespace) -> None:
    """Measure, print a table, write what was asked for."""
    if options.threads:
        torch.set_num_threads(options.threads)
    before = conditions()
    checkpoint, bundles = prepare(options.folder, options.model)
    starts = {name: first_token_s(bundle, options.threads) for name, bundle in bundles.items()}
    config = checkpoint.family.config
    samples = samples_of(config.vision.image_size, config.hidden_size)
    phases = measure_phases(checkpoint, bundles, samples, options)
    timings = phases["torch-bf16"] | {"torch-fp32": phases["torch-fp32"]["torch-fp32"]}
    profiles = {name: operators(bundles[name], samples, options.threads) for name in DEFAULTS}
    print(f"{'median (quartiles), ms':<24}" + "".join(f"{name:>34}" for name in timings))
    for stage in STAGES:
        cells = [spread(each[stage]) for each in timings.values()]
        print(
            f"{stage:<24}" + "".join(f"{c['median']:.1f} ({c['q25']:.1f} .. {c['q75']:.1f})".rjust(34) for c in cells)
        )
    ratios = compare(phases, bundles)
    print(json.dumps({key: value.get("median", value) for key, value in ratios.items()}))
    headline = {
        "decode_int4_vs_torch": ratios["decode_int4"]["median"],
        "decode_int8_vs_torch": ratios["decode_int8"]["median"],
        "prefill_vs_torch": ratios["prefill_int8"]["median"],
        "vision_vs_torch": ratios["vision_int8"]["median"],
        "decode_bandwidth_share": ratios["bandwidth_share_int4"]["median"],
    }
    details = {
        "model": options.model,
        "prompt_tokens": PROMPT,
        "threads": options.threads,
        READ: spread([read for turns in phases.values() for each in turns.values() for read in each[READ]]),
        "start_to_first_token_s": starts,
        "ratios": ratios,
        "milliseconds": {name: {s: spread(each[s]) for s in STAGES} for name, each in timings.items()},
        "operators_ms": profiles,
    }
    finish(options, before, headline, details)
