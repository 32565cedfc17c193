"""The two forms that a decoder graph's rotary inputs can take: a table with position ids, or the call's own rows.

    python benchmarks/rotary_forms.py [--model nano 1b] [--threads 1] [--seconds 20] [--json FILE]

table: rope_cos and rope_sin [C, D/2] with position_ids [B, T]; log-n's factor is computed from the positions.
rows: rope_cos and rope_sin [B, T, D/2] and query_scale [B, T]; no position ids. In the dialects with
    GroupQueryAttention last_indices [B] takes the place of write_indices, since T would otherwise come from a shape.
folded: as rows, but the queries' rows are multiplied by log-n's factor once, instead of the queries in each layer.
again: the table form a second time; its distance from the first is the noise.

Decoders of 4-bit weights and an 8-bit head, of models/nano or of random weights ("1b"), run in turns over one cache. A
call is timed with the host's part of it: positions or rows are made and all inputs bound. Ratios are of one turn each,
the table's time over the other's, so above 1 the other is faster. Logits and the written keys are compared.
TensorRT-RTX builds the forms without a GPU (rotary_layers.py); the log says what became of the rotary layers.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/synthetic_checkpoint

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from common import arguments, conditions, finish, ratio, spread
from rotary_graphs import in_form, write_decoder
from rotary_layers import engine_layers

from qwenvl_edge import _core
from qwenvl_edge.backends.onnxruntime import TOTAL
from qwenvl_edge.backends.onnxruntime_session import NATIVE, ONNXRUNTIME, STANDARD, can_run
from qwenvl_edge.kv_cache import rope_tables
from qwenvl_edge_export.config import QwenVLConfig

Arrays = dict[str, npt.NDArray[Any]]
FORMS = ("table", "rows", "folded", "again")
CAPACITY, BATCH = 2048, 4
CALLS = {  # rows, tokens of each, tokens in use
    "decode_at_512": (1, 1, 512),
    "decode_4_rows_at_512": (4, 1, 512),
    "prefill_128_at_0": (1, 128, 0),
    "prefill_128_at_512": (1, 128, 512),
}
PROFILED = ("decode_at_512", "prefill_128_at_512")
# Layers and dialects. Standard operators widen all weights to float32 in every session: four of them, uncut, took the
# memory of a machine with 24 GB.
DECODERS = {
    "nano": [(None, (STANDARD, ONNXRUNTIME, NATIVE))],
    "1b": [(None, (ONNXRUNTIME, NATIVE)), (4, (STANDARD,))],
}
FAR = 4096  # capacity of the comparison past the training length, where log-n's factor is above 1
LEAST, MOST = 5, 300  # turns of a call
REPEATS = 5  # of a profiled call


@dataclass
class Host:
    """The host's side: finished rows of every position, float32, as a family would keep them.

    rope [2, C, D/2]: cosines, then sines; scale [C]: log-n's factor.
    """

    rope: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    @classmethod
    def of(cls, config: QwenVLConfig, capacity: int) -> Host:
        """For a model's positions 0 .. capacity - 1."""
        positions = np.arange(1, capacity + 1, dtype=np.float32)
        scale = np.log(positions) * np.float32(1 / np.log(config.seq_length))
        rope = np.stack(rope_tables(capacity, config.head_dim, config.rope_base, 1.0))
        return cls(rope, np.maximum(scale, np.float32(1)))

    def inputs(self, form: str, dialect: str, tokens: int, used: list[int]) -> Arrays:
        """Everything that is made anew for a call, but its embeddings."""
        given: Arrays = {"logits_indices": np.full((len(used), 1), tokens - 1)}
        start = np.array(used)
        if form in ("table", "again"):
            given["position_ids"] = start[:, None] + np.arange(tokens)
            given["rope_cos"], given["rope_sin"] = self.rope
        else:
            given |= self._rows(tokens, used)
        if dialect == STANDARD or form in ("table", "again"):
            given["write_indices"] = start
        else:
            given["last_indices"] = (start + (tokens - 1)).astype(np.int32)
        if dialect != STANDARD:
            given[TOTAL] = np.array([max(used) + tokens], np.int32)
        return given

    def _rows(self, tokens: int, used: list[int]) -> Arrays:
        """Views for one row; copies for several, each of which could come from another table."""
        if len(used) == 1:
            (start,) = used
            cos, sin = self.rope[:, None, start : start + tokens]
            return {"rope_cos": cos, "rope_sin": sin, "query_scale": self.scale[None, start : start + tokens]}
        rope = np.empty((2, len(used), tokens, self.rope.shape[2]), np.float32)
        scale = np.empty((len(used), tokens), np.float32)
        for i, start in enumerate(used):
            rope[:, i] = self.rope[:, start : start + tokens]
            scale[i] = self.scale[start : start + tokens]
        return {"rope_cos": rope[0], "rope_sin": rope[1], "query_scale": scale}


class Subject:
    """One form of a decoder, bound to a cache that is shared with the others."""

    def __init__(
        self, path: Path, form: str, dialect: str, cache: Arrays, threads: int, *, profile: Path | None = None
    ):
        options = ort.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        if dialect == NATIVE:
            options.register_custom_ops_library(_core.__file__)
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._form, self._dialect, self._cache = form, dialect, cache
        self._bindings = {count: self._bind(count) for count in (1, len(next(iter(cache.values()))))}

    def call(self, host: Host, embeds: npt.NDArray[np.float32], used: list[int]) -> tuple[float, float, Any]:
        """Seconds of a call, of these the host's until it runs; the logits."""
        binding = self._bindings[len(used)]
        started = time.perf_counter()
        given = host.inputs(self._form, self._dialect, embeds.shape[1], used) | {"inputs_embeds": embeds}
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        bound = time.perf_counter()
        self.session.run_with_iobinding(binding)
        ended = time.perf_counter()
        return ended - started, bound - started, binding.get_outputs()[0].numpy()

    def _bind(self, rows: int) -> ort.IOBinding:
        binding = self.session.io_binding()
        binding.bind_output("logits", "cpu")
        for name, array in self._cache.items():
            value = ort.OrtValue.ortvalue_from_numpy(array[:rows])
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        return binding


def new_cache(config: QwenVLConfig, batch: int, capacity: int) -> Arrays:
    """Random keys and values, float32."""
    random, shape = np.random.default_rng(0), (batch, config.num_heads, capacity, config.head_dim)
    names = [f"past_key_values.{i}.{part}" for i in range(config.num_layers) for part in ("key", "value")]
    values = random.standard_normal(shape, np.float32)
    return {name: values.copy() for name in names}


def compared(subjects: Mapping[str, Subject], host: Host, config: QwenVLConfig, cache: Arrays, at: int) -> Any:
    """The largest difference from the table form's logits and written keys, 0 where all bits agree."""
    embeds = np.random.default_rng(1).standard_normal((1, 8, config.hidden_size), np.float32)
    found = {}
    for form in ("table", "rows", "folded"):
        logits = subjects[form].call(host, embeds, [at])[2].copy()
        keys = np.stack([array[0, :, at : at + 8] for name, array in cache.items() if name.endswith("key")])
        found[form] = (logits, keys)
    logits, keys = found.pop("table")
    return {
        form: {"logits": float(np.abs(other - logits).max()), "keys": float(np.abs(written - keys).max())}
        for form, (other, written) in found.items()
    }


def rotary_ms(subject: Subject, host: Host, config: QwenVLConfig) -> dict[str, float]:
    """Least milliseconds of all rotary embeddings of a call among REPEATS, from a profiled session."""
    for call in PROFILED:
        batch, tokens, used = CALLS[call]
        for _ in range(REPEATS):
            subject.call(host, np.zeros((batch, tokens, config.hidden_size), np.float32), [used])
    events = json.loads(Path(subject.session.end_profiling()).read_text(encoding="utf-8"))
    runs = [event for event in events if event["name"] == "model_run"]
    kernels = [e for e in events if e["name"].endswith("_kernel_time") and e["args"]["op_name"] == "RotaryEmbedding"]
    spent = [sum(k["dur"] for k in kernels if run["ts"] <= k["ts"] < run["ts"] + run["dur"]) / 1e3 for run in runs]
    return {call: min(spent[i * REPEATS : (i + 1) * REPEATS]) for i, call in enumerate(PROFILED)}


def measured(
    subjects: Mapping[str, Subject], host: Host, hidden: int, shape: tuple[int, int, int], budget: float
) -> dict[str, Any]:
    """Times of the forms in turns, the order turned on each time."""
    batch, tokens, used = shape
    embeds = np.random.default_rng(0).standard_normal((batch, tokens, hidden), np.float32)
    starts = [used] if batch == 1 else [used - 7 * i for i in range(batch)]
    warm = [subject.call(host, embeds, starts)[0] for subject in subjects.values()]
    turns = int(np.clip(budget / sum(warm), LEAST, MOST))
    seconds: dict[str, list[float]] = {form: [] for form in subjects}
    made: dict[str, list[float]] = {form: [] for form in subjects}
    for i in range(turns):
        order = list(subjects)[i % len(subjects) :] + list(subjects)[: i % len(subjects)]
        for form in order:
            took, before, _ = subjects[form].call(host, embeds, starts)
            seconds[form].append(took)
            made[form].append(before)
    return {
        "ms": {form: spread([1e3 * s for s in took]) for form, took in seconds.items()},
        "host_us": {form: spread([1e6 * s for s in took]) for form, took in made.items()},
        "table_over": {form: ratio(seconds[form], seconds["table"]) for form in FORMS[1:]},
    }


def main() -> None:
    """Measure every model, dialect and call; then print TensorRT-RTX's layers."""
    parser = arguments(__doc__)
    parser.add_argument("--model", nargs="+", choices=("nano", "1b"), default=["nano", "1b"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="about so long for each call in each dialect")
    options = parser.parse_args()
    before = conditions()
    details: dict[str, Any] = {"threads": options.threads, "models": {}}
    figures: dict[str, Any] = {}
    for name, (layers, dialects) in [(model, each) for model in options.model for each in DECODERS[model]]:
        with tempfile.TemporaryDirectory() as folder:
            config, paths = write_decoder(name, Path(folder), "int4", "cpu", layers)
            for dialect in dialects:
                if dialect not in paths or not can_run(dialect):
                    print(f"{name} {dialect}: not on this machine")
                    continue
                result = dialect_figures(name, config, dialect, paths[dialect], options)
                details["models"].setdefault(name, {})[dialect] = {"layers": config.num_layers, **result}
                figures |= {
                    f"{name}/{dialect}/{call}": each["table_over"]["rows"]["median"]
                    for call, each in result["calls"].items()
                }
    details["tensorrt_rtx"] = engine_layers()
    finish(options, before, figures, details)


def dialect_figures(
    name: str, config: QwenVLConfig, dialect: str, path: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Times, the share of rotary embedding and differences of one decoder."""
    forms = {form: in_form(path, form) for form in FORMS}
    cache, host = new_cache(config, BATCH, CAPACITY), Host.of(config, CAPACITY)
    subjects = {form: Subject(forms[form], form, dialect, cache, options.threads) for form in FORMS}
    found: dict[str, Any] = {"calls": {}}
    for call, shape in CALLS.items():
        found["calls"][call] = measured(subjects, host, config.hidden_size, shape, options.seconds)
        show(f"{name} {dialect} {call}", found["calls"][call])
    found["difference_at_512"] = compared(subjects, host, config, cache, 512)
    del subjects
    found["rotary_ms"] = {
        form: rotary_ms(Subject(forms[form], form, dialect, cache, options.threads, profile=path.parent), host, config)
        for form in FORMS[:3]
    }
    del cache
    gc.collect()
    cache, host = new_cache(config, 1, FAR), Host.of(config, FAR)
    subjects = {form: Subject(forms[form], form, dialect, cache, options.threads) for form in FORMS[:3]}
    found["difference_at_3000"] = compared(subjects, host, config, cache, 3000)
    for key in ("rotary_ms", "difference_at_512", "difference_at_3000"):
        print(f"{name} {dialect} {key}: {found[key]}", flush=True)
    return found


def show(label: str, found: dict[str, Any]) -> None:
    """One line of a call's figures."""
    times = ", ".join(
        f"{form} {found['ms'][form]['median']:.3f} ms"
        + (f" ({found['table_over'][form]['median']:.3f} x)" if form != "table" else "")
        for form in FORMS
    )
    print(
        f"{label:<40} {times}; host {found['host_us']['table']['median']:.0f} -> "
        f"{found['host_us']['rows']['median']:.0f} us",
        flush=True,
    )


if __name__ == "__main__":
    main()
