"""Cost of exporting a checkpoint of any size (seconds, memory, disk) and of the answers of its bundle.

    python benchmarks/export_scale.py --preset {1b,full,wide} --precision {int8,int4,fp16} [--skip-verify]
        [--calibrate [N]] [--folder DIR] [--ask]

A random checkpoint of the preset is written to DIR (or one given by --checkpoint is read), `qwenvl export` runs as a
process of its own, and its anonymous memory (what cannot be dropped, unlike mapped pages of files) is read every 20 ms,
the disk that its folders take (the bundle that is being made, and `.calibration` beside it) every 60 ms. The export is
compared with PyTorch as a user's is; verify_seconds are those of the comparison. "wide" has three layers of the
full-size model's width, for machines that cannot hold more. With --ask a new process loads the bundle and answers
questions about pictures, which PyTorch encodes too, and a token's share of the read bandwidth is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/synthetic_checkpoint

import numpy as np
from common import arguments, conditions, finish
from PIL import Image
from processes import run

from tools import synthetic_families


def export(options: argparse.Namespace, checkpoint: Path, bundle: Path) -> dict[str, Any]:
    """Export in a process of its own."""
    program = [sys.executable, "-m", "qwenvl_edge.cli", "export", str(checkpoint), str(bundle)]
    target = options.target or ("gpu" if options.precision == "fp16" else "cpu")
    chosen = ["--precision", options.precision, "--target", target]
    if options.block_size:
        chosen += ["--block-size", str(options.block_size)]
    if options.head_precision:
        chosen += ["--head-precision", options.head_precision]
    if options.calibrate is not None:
        chosen += ["--calibrate", *([str(samples(bundle.parent, options.calibrate))] if options.calibrate else [])]
    shutil.rmtree(bundle, ignore_errors=True)  # its disk would be counted
    chosen += ["--skip-verify"] if options.skip_verify else []
    return run([*program, *chosen, "--allow-loss"], made=bundle, steps=True)


def samples(folder: Path, count: int) -> Path:
    """So many calibration samples, each a picture of noise with a question and an answer."""
    made = folder / "samples"
    made.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (448, 448, 3), np.uint8)).save(made / f"{i}.png")
        lines.append({"image": f"{i}.png", "prompt": "Describe the picture.", "answer": f"It shows noise number {i}."})
    (made / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return made / "samples.jsonl"


def size_gb(folder: Path) -> float:
    """Bytes of a folder's files, in GB."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e9


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details."""
    from qwenvl_edge_export.checkpoint.reader import Checkpoint
    from tools.synthetic_checkpoint import write

    checkpoint = options.checkpoint or folder / f"checkpoint-{options.preset}"
    if not checkpoint.exists():
        write(checkpoint, options.preset)
    bundle = folder / f"bundle-{options.preset}-{options.precision}"
    shapes = Checkpoint.open(checkpoint).family.tensors.values()
    parameters = sum(math.prod(shape) for shape in shapes)
    exported = export(options, checkpoint, bundle)
    compared = [at for at, what in exported["steps"] if what.startswith("comparing")]
    manifest = json.loads((bundle / "bundle.json").read_text())
    headline = {
        "precision": options.precision,
        "parameters": parameters,
        "seconds": exported["seconds"],
        "verify_seconds": exported["seconds"] - compared[0] if compared else None,
        "peak_anonymous_gb": exported["peak_anonymous_gb"],
        "disk_gb": size_gb(bundle),
        "peak_disk_gb": exported["peak_disk_gb"],
        "verified": manifest["parity"].get("status", "no"),
    }
    details = {
        "precision": manifest["precision"],
        "parity": manifest["parity"],
        "steps_s": exported["steps"],
        "calibrated": "no" if options.calibrate is None else options.calibrate or "built-in samples",
        "peak_resident_gb": exported["peak_resident_gb"],
        "checkpoint_gb": size_gb(checkpoint),
        "files_gb": {name: info["size"] / 1e9 for name, info in manifest["files"].items()},
    }
    if options.ask:
        from scale_answer import answer

        details["answer"] = answer(checkpoint, bundle, max_context=options.max_context, new_tokens=options.new_tokens)
    return headline, details


def main() -> None:
    """Measure, print, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--preset", choices=("tiny", "1b", "wide", "full", *synthetic_families.PRESETS), default="1b")
    parser.add_argument("--checkpoint", type=Path, help="export this one instead of a random one")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--head-precision")
    parser.add_argument("--target", help="default: gpu for fp16, else cpu")
    parser.add_argument(
        "--calibrate", type=int, nargs="?", const=0, metavar="N", help="on N samples; without N on the built-in ones"
    )
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--skip-verify", action="store_true", help="do not compare with PyTorch")
    parser.add_argument("--ask", action="store_true", help="load the bundle and answer a question")
    parser.add_argument("--max-context", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--keep", action="store_true", help="keep what was written to --folder")
    options = parser.parse_args()
    before = conditions()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="export-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        headline, details = measure(options, folder)
    finally:
        if not options.keep:
            bundle = f"bundle-{options.preset}-{options.precision}"
            for made in (f"checkpoint-{options.preset}", bundle, f"{bundle}.calibration", "samples"):
                shutil.rmtree(folder / made, ignore_errors=True)
            if options.folder is None:
                folder.rmdir()
    print(json.dumps(details, indent=1))
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
