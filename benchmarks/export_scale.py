"""What exporting a checkpoint of any size takes: seconds, memory, disk; and what its bundle takes to answer.

    python benchmarks/export_scale.py --preset full --precision int4 [--folder DIR] [--verify] [--ask] [--keep]

A random checkpoint of the preset is written to DIR (or one given by --checkpoint is read), `qwenvl export` runs as a
process of its own, and its anonymous memory (what cannot be dropped, unlike mapped pages of files) is read every 20 ms.
With --ask a new process loads the bundle and answers one question about a picture.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools/synthetic_checkpoint

from common import arguments, conditions, finish

_SAMPLE_S = 0.02
_ASK = """
import json, sys, time
start = time.perf_counter()
import numpy as np
from qwenvl_edge import QwenVLEngine
engine = QwenVLEngine(sys.argv[1], max_context=int(sys.argv[2]))
load = time.perf_counter() - start
picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
stats = engine.chat("What is in the picture?", images=[picture], do_sample=False, max_new_tokens=int(sys.argv[3])).stats
print(json.dumps({"load_s": load, "image_s": stats.image_ms / 1e3, "prefill_s": stats.prefill_ms / 1e3,
                  "prompt_tokens": stats.prompt_tokens, "token_ms": list(stats.token_ms)}))
"""


def run(command: list[str]) -> dict[str, Any]:
    """Run a process: its seconds, peak memory in GB (anonymous; resident with mapped files), and standard output."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    anonymous = resident = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        anonymous = max(anonymous, int(fields.get("RssAnon", "0 kB").split()[0]))
        resident = max(resident, int(fields.get("VmRSS", "0 kB").split()[0]))
        time.sleep(_SAMPLE_S)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{command[:6]} ended with code {process.returncode}")
    return {
        "seconds": time.perf_counter() - started,
        "peak_anonymous_gb": anonymous * 1024 / 1e9,
        "peak_resident_gb": resident * 1024 / 1e9,
        "output": output,
    }


def export(options: argparse.Namespace, checkpoint: Path, bundle: Path) -> dict[str, Any]:
    """Export in a process of its own."""
    program = [sys.executable, "-m", "qwenvl_edge.cli", "export", str(checkpoint), str(bundle), "--force"]
    chosen = ["--precision", options.precision, "--target", options.target]
    if options.block_size:
        chosen += ["--block-size", str(options.block_size)]
    if options.head_precision:
        chosen += ["--head-precision", options.head_precision]
    return run([*program, *chosen, "--allow-loss", *([] if options.verify else ["--skip-verify"])])


def ask(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """Load the bundle and answer in a process of its own."""
    result = run([sys.executable, "-c", _ASK, str(bundle), str(options.max_context), str(options.new_tokens)])
    return {key: result[key] for key in ("peak_anonymous_gb", "peak_resident_gb")} | json.loads(result["output"])


def size_gb(folder: Path) -> float:
    """Bytes of a folder's files, in GB."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e9


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details."""
    from qwenvl_edge_export.checkpoint import Checkpoint, expected_shapes
    from tools.synthetic_checkpoint import write

    checkpoint = options.checkpoint or folder / f"checkpoint-{options.preset}"
    if not checkpoint.exists():
        write(checkpoint, options.preset)
    bundle = folder / f"bundle-{options.preset}-{options.precision}"
    shapes = expected_shapes(Checkpoint.open(checkpoint).config).values()
    parameters = sum(math.prod(shape) for shape in shapes)
    exported = export(options, checkpoint, bundle)
    headline = {
        "precision": options.precision,
        "parameters": parameters,
        "seconds": exported["seconds"],
        "peak_anonymous_gb": exported["peak_anonymous_gb"],
        "disk_gb": size_gb(bundle),
    }
    manifest = json.loads((bundle / "bundle.json").read_text())
    details = {
        "precision": manifest["precision"],
        "verified": options.verify,
        "peak_resident_gb": exported["peak_resident_gb"],
        "checkpoint_gb": size_gb(checkpoint),
        "files_gb": {name: info["size"] / 1e9 for name, info in manifest["files"].items()},
    }
    if options.ask:
        details["answer"] = ask(options, bundle)
    return headline, details


def main() -> None:
    """Measure, print, write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--preset", choices=("tiny", "1b", "full"), default="1b")
    parser.add_argument("--checkpoint", type=Path, help="export this one instead of a random one")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--head-precision")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--verify", action="store_true", help="compare with PyTorch too, and count its time")
    parser.add_argument("--ask", action="store_true", help="load the bundle and answer a question")
    parser.add_argument("--max-context", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--keep", action="store_true", help="keep what was written to --folder")
    options = parser.parse_args()
    before = conditions()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="export-scale-"))
    try:
        headline, details = measure(options, folder)
    finally:
        if not options.keep:
            for made in (f"checkpoint-{options.preset}", f"bundle-{options.preset}-{options.precision}"):
                shutil.rmtree(folder / made, ignore_errors=True)
    print(json.dumps(details, indent=1))
    finish(options, before, headline, details)


if __name__ == "__main__":
    main()
