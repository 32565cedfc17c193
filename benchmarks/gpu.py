"""All that is measured on an NVIDIA GPU, in eight minutes: `python benchmarks/gpu.py [--json FILE] [--plot FILE]`.

device   bandwidth of a copy, peak of matrix products in fp16
kernels  the TensorRT plugin's, beside that bandwidth and beside PyTorch's flash attention (`make plugin` first)
token    a token of the full-size decoder without TensorRT: the plugin's attention and cuBLAS in one CUDA graph
torch    PyTorch on the full-size model (9.66 B random weights): eager, and torch.compile with CUDA graphs
fp16     the same weights as a bundle in ONNX Runtime's CUDA provider: picture, prompt, tokens; and how far its features
         and logits are from those of PyTorch
int4     the same with the decoder in 4 bits

Every part is a process of its own with a time limit, and FILE is written after each: what fails or takes too long loses
nothing else. `--only PART` repeats parts; the others are kept from FILE if it is of the same device and preset.
`--preset tiny --device cpu` goes through the same code without a GPU, which proves that it runs and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import arguments, conditions, rounded
from gpu_report import draw, headline

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for tools
LIBRARY = ROOT / "build" / "plugin" / "libqwenvl_tensorrt_plugin.so"
LIMITS_S = {"device": 60, "kernels": 90, "token": 60, "torch": 200, "fp16": 150, "int4": 150}
TOTAL_S = 480
NEEDED_BYTES = {"full": 24_000_000_000}  # of disk or memory for a bundle
GPU_BYTES = {"full": {"token": 18e9, "torch": 60e9, "fp16": 26e9, "int4": 26e9}}
SIZES = {"full": (512, 64, 7), "tiny": (12, 3, 1)}  # tokens of the prompt, tokens decoded a turn, turns


class SkippedError(Exception):
    """A part that cannot be measured here; says why."""


def measure_device(options: argparse.Namespace) -> dict[str, Any]:
    """The part "device"."""
    import gpu_device

    return gpu_device.measure_device(options.device, tiny=options.preset == "tiny")


def measure_kernels(options: argparse.Namespace) -> dict[str, Any]:
    """The part "kernels"."""
    if not options.library.exists():
        raise SkippedError(f"there is no {options.library}; run: make plugin")
    import gpu_kernels

    sizes = gpu_kernels.TINY if options.preset == "tiny" else gpu_kernels.Sizes()
    return dict(gpu_kernels.Kernels(gpu_kernels.Library(options.library), options.device, sizes).measure())


def measure_token(options: argparse.Namespace) -> dict[str, Any]:
    """The part "token"."""
    if not options.library.exists():
        raise SkippedError(f"there is no {options.library}; run: make plugin")
    check_gpu_memory(options, "token")
    import gpu_token
    from gpu_kernels import Library

    sizes = gpu_token.TINY if options.preset == "tiny" else gpu_token.Decoder()
    found = gpu_token.measure_token(Library(options.library), options.device, sizes)
    print(f"token     {found['ms']['median']:9.2f} ms, {found['share_of_copy']['median']:.2f} of a copy's bandwidth")
    return found


def check_gpu_memory(options: argparse.Namespace, part: str) -> None:
    """Skip a part before anything is made for it, if the GPU has too little free memory."""
    needed = GPU_BYTES.get(options.preset, {}).get(part, 0.0)
    if options.device != "cuda" or not needed:
        return
    import torch

    free = torch.cuda.mem_get_info()[0]
    if free < needed:
        raise SkippedError(f"it takes {needed / 1e9:.0f} GB of GPU memory, and {free / 1e9:.0f} GB are free")


def measure_torch(options: argparse.Namespace) -> dict[str, Any]:
    """The part "torch"."""
    check_gpu_memory(options, "torch")
    import torch
    from gpu_model import Compiled, random_checkpoint, vision_flops
    from scaled import Eager

    from qwenvl_edge_export.families.qwen_vl.reference import QwenVLNetwork

    prompt, steps, _ = SIZES[options.preset]
    with work_folder(options) as folder:
        checkpoint = random_checkpoint(folder / "checkpoint", options.preset, options.device)
        model = QwenVLNetwork.load(checkpoint.family.config, checkpoint.tensor, torch.float16)
    details: dict[str, Any] = {"vision_flops": vision_flops(checkpoint.family.config)}
    details["eager"] = measure_subject(Eager(model, options.device), options, checkpoint.family.config, name="torch")
    try:
        compiled = Compiled(model, options.device, prompt=prompt, capacity=prompt + steps)
        details["compiled"] = measure_subject(compiled, options, checkpoint.family.config, name="compiled")
    except Exception as error:  # whatever the compiler raises; eager PyTorch's figures stay
        details["compiled"] = {"failed": " ".join(str(error).split())[:500]}
    if options.device == "cpu":
        details["compiled"]["note"] = "nothing is compiled or captured on the CPU"
    return details


def measure_bundle(precision: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """The parts "fp16" and "int4"."""

    def measure(options: argparse.Namespace) -> dict[str, Any]:
        import onnxruntime
        import torch
        from gpu_model import make_bundle, random_checkpoint
        from scaled import Runtime

        from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
        from qwenvl_edge.backends.onnxruntime.gpu import OnnxRuntimeCudaBackend

        if options.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise SkippedError("ONNX Runtime is installed without CUDA; pip install 'onnxruntime-gpu[cuda,cudnn]'")
        check_gpu_memory(options, precision)
        prompt, steps, _ = SIZES[options.preset]
        with work_folder(options) as folder:
            began = time.perf_counter()
            checkpoint = random_checkpoint(folder / "checkpoint", options.preset, options.device)
            bundle = make_bundle(checkpoint, folder / "bundle", precision)
            exported = time.perf_counter()
            if options.device == "cuda":
                torch.cuda.empty_cache()
            backend = OnnxRuntimeCudaBackend(bundle) if options.device == "cuda" else OnnxRuntimeBackend(bundle)
            details: dict[str, Any] = {
                "backend": backend.description,
                "decoder_bytes": bundle.manifest.files["decoder.data"].size,
                "export_s": exported - began,
                "load_s": time.perf_counter() - exported,
            }
            subject = Runtime(backend, bundle, prompt + steps)
            return details | measure_subject(subject, options, checkpoint.family.config, name=precision)

    return measure


def measure_subject(subject: Any, options: argparse.Namespace, config: Any, *, name: str) -> dict[str, Any]:
    """Milliseconds of a picture, a prompt and a token, and how near its results are to those of "torch"."""
    import numpy as np
    from common import spread
    from scaled import STAGES, samples_of, turn

    prompt, steps, repeats = SIZES[options.preset]
    samples = samples_of(config.vision.image_size, config.hidden_size, prompt)
    outputs = {
        "vision": subject.vision(samples["pixels"]),
        "prefill": subject.prefill(samples["prompt"]),
        "decode": subject.decode(samples["token"]),
    }
    result: dict[str, Any] = {}
    reference = options.exchange / "torch.npz"
    if name == "torch":
        np.savez(reference, **outputs)
    elif reference.exists():
        with np.load(reference) as expected:
            result["cosine"] = {stage: cosine(outputs[stage], expected[stage]) for stage in STAGES}
    timings: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for number in range(repeats + 1):
        if number == 1:  # the turn before was to warm up
            timings = {stage: [] for stage in STAGES}
        turn(subject, samples, timings, steps)
    result["ms"] = {stage: spread(times) for stage, times in timings.items()}
    result["tokens_per_s"] = {
        "prefill": prompt / result["ms"]["prefill"]["median"] * 1e3,
        "decode": 1e3 / result["ms"]["decode"]["median"],
    }
    print(f"{name:9}" + "".join(f" {s} {result['ms'][s]['median']:9.2f} ms" for s in STAGES))
    return result


def cosine(a: Any, b: Any) -> float:
    """Of the angle between two arrays."""
    import numpy as np

    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "device": measure_device,
    "kernels": measure_kernels,
    "token": measure_token,
    "torch": measure_torch,
    "fp16": measure_bundle("fp16"),
    "int4": measure_bundle("int4"),
}


@contextmanager
def work_folder(options: argparse.Namespace) -> Iterator[Path]:
    """A folder for a bundle, removed afterwards: in memory where there is room, since it is written and read once."""
    needed = NEEDED_BYTES.get(options.preset, 1 << 28)
    places = [options.folder] if options.folder else [Path("/dev/shm"), Path(tempfile.gettempdir())]
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free >= needed:
            with tempfile.TemporaryDirectory(dir=place, prefix="qwenvl-gpu-") as folder:
                yield Path(folder)
            return
    raise SkippedError(f"no room for {needed / 1e9:.0f} GB in {' or '.join(map(str, places))}; choose another --folder")


def run_part(options: argparse.Namespace) -> None:
    """In the child: measure one part and write what was found."""
    began = time.perf_counter()
    try:
        found = PARTS[options.part](options)
    except SkippedError as reason:
        found = {"skipped": str(reason)}
    found["seconds"] = time.perf_counter() - began
    (options.exchange / f"{options.part}.json").write_text(json.dumps(rounded(found)))


def start_part(part: str, options: argparse.Namespace, exchange: Path, limit_s: float) -> dict[str, Any]:
    """In the parent: run a part as a process; what it found, or how it failed."""
    command = [sys.executable, __file__, "--part", part, "--exchange", exchange, "--preset", options.preset]
    command += ["--device", options.device, "--library", options.library]
    command += ["--folder", options.folder] if options.folder else []
    log = exchange / f"{part}.log"
    try:
        with log.open("w") as file:
            done = subprocess.run(
                [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            )
    except subprocess.TimeoutExpired:
        return {"failed": f"it took longer than {limit_s:.0f} s", "log": tail(log)}
    finally:
        print(log.read_text(errors="replace"), end="", flush=True)
    result = exchange / f"{part}.json"
    if done.returncode or not result.exists():
        return {"failed": f"exit status {done.returncode}", "log": tail(log)}
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def tail(log: Path) -> list[str]:
    """The end of a log, for the record."""
    return log.read_text(errors="replace").splitlines()[-15:]


def earlier(options: argparse.Namespace) -> dict[str, Any]:
    """The parts in --json that are kept: those of this preset and device that are not measured again."""
    if not (options.only and options.json and options.json.exists()):
        return {}
    report = json.loads(options.json.read_text())
    if (report["conditions"]["preset"], report["conditions"]["on"]) != (options.preset, options.device):
        sys.exit(f"{options.json} is of another preset or device; choose another file")
    return {part: found for part, found in report["details"].items() if part not in options.only}


def run_all(options: argparse.Namespace) -> int:
    """Run the parts one after another, write the report after each, print the headline figures as the last line."""
    before = conditions() | {"preset": options.preset, "on": options.device}
    details = earlier(options)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qwenvl-gpu-exchange-") as folder:
        for part in options.only or PARTS:
            left = options.seconds - (time.monotonic() - began)
            print(f"--- {part} ({left:.0f} s left)", flush=True)
            details[part] = start_part(part, options, Path(folder), max(1.0, min(LIMITS_S[part], left)))
            for outcome in ("failed", "skipped"):
                if outcome in details[part]:
                    print(f"{part} {outcome}: {details[part][outcome]}", flush=True)
            report = {"conditions": before, "headline": rounded(headline(details)), "details": rounded(details)}
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if options.plot:
        draw(options.plot, details)
    print(json.dumps(report["headline"]))
    return int(any("failed" in found for found in details.values()))


def main() -> None:
    """Read the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help="measure this part; repeatable")
    parser.add_argument("--preset", choices=SIZES, default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--library", type=Path, default=LIBRARY, metavar="FILE", help="the plugin's kernels")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where bundles are written, 24 GB at full size")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="time for all parts together (default 480)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--exchange", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options)
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"PyTorch {torch.__version__} sees no CUDA GPU; without one: --preset tiny --device cpu")
    sys.exit(run_all(options))


if __name__ == "__main__":
    main()
