"""Cost of calibrating a decoder: seconds and memory of some of its layers, and what the whole takes after that.

    python benchmarks/calibration.py --preset full --layers 1 [--precision P] [--folder DIR] [--json FILE]
    python benchmarks/calibration.py --quality [--json FILE]

A random checkpoint of the preset's widths with so few layers is written to DIR. `Calibration` runs on the built-in
samples in a process of its own, whose anonymous memory is read every 20 ms. Every layer of a decoder costs the same, so
the hours are those of a picture times their number, and of a layer times the preset's number of them. "by_cpu_hours"
are processor seconds by the number of processors: what the same work takes where nobody else uses them.

--quality: the mean KL divergence from the float model in 4 bits (blocks of 128), rounded and calibrated. models/nano is
asked questions that calibration did not see, tests/data/tiny, which is untrained, the prompts of verification.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # checkpoints are made in tools

from common import arguments, conditions, finish

BLOCK = 128  # of --quality
PRECISIONS = ("int4", "int8", "w8a8")


def calibrate(checkpoint: Path, precision: str, folder: Path) -> dict[str, Any]:
    """Calibrate in this process: seconds, and processor seconds, of the samples' encoding and of each layer."""
    from qwenvl_edge_export.checkpoint.reader import Checkpoint
    from qwenvl_edge_export.options import ExportPrecision
    from qwenvl_edge_export.quantization.calibration import Calibration
    from qwenvl_edge_export.quantization.samples import read_samples
    from qwenvl_edge_export.verification.cases import source_case_builder

    opened = Checkpoint.open(checkpoint)
    cases = read_samples(None, source_case_builder(opened))
    pictures = {picture.digest(): picture for case in cases for picture in case.pictures}
    one = next(iter(pictures.values()))
    # The features of one picture serve all, so that only one is encoded; they all take the same time.
    cases = [dataclasses.replace(case, pictures=(one,) * len(case.pictures)) for case in cases]
    times: dict[int, tuple[float, float]] = {}
    # A layer ends where the next one begins.
    run = Calibration(
        opened,
        ExportPrecision.choose(precision),
        cases,
        folder,
        lambda done, total, what: times.setdefault(done if "layer" in what else -1, clock()) and None,
    )
    run.run()
    marks = [*(times[key] for key in sorted(times)), clock()]
    spent = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(marks)]
    return {
        "samples": len(cases),
        "tokens": sum(len(case.prompt.ids) + len(case.answer) for case in cases),
        "pictures": len(pictures),
        "picture": spent[0],
        "layers": spent[1:],
    }


def clock() -> tuple[float, float]:
    """Seconds, and processor seconds of this process."""
    return time.perf_counter(), time.process_time()


def measure(preset: str, layers: int, precision: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details."""
    from processes import run

    from tools import synthetic_checkpoint

    checkpoint = folder / f"checkpoint-{preset}-{layers}"
    if not checkpoint.exists():
        synthetic_checkpoint.write(checkpoint, preset, layers=layers)
    work = folder / "calibration"
    shutil.rmtree(work, ignore_errors=True)
    done = run([sys.executable, __file__, "--child", str(checkpoint), precision, str(work)], made=work)
    found = json.loads(done["output"].splitlines()[-1])
    whole = synthetic_checkpoint.preset(preset)["num_hidden_layers"]
    seconds, processor = (statistics.mean(times) for times in zip(*found["layers"], strict=True))
    encoding, encoding_processor = (each * found["pictures"] for each in found["picture"])
    headline = {
        "preset": preset,
        "layers": layers,
        "seconds_per_layer": seconds,
        "estimated_hours": (encoding + whole * seconds) / 3600,
        "by_cpu_hours": (encoding_processor + whole * processor) / 3600 / len(os.sched_getaffinity(0)),
        "peak_anonymous_gb": done["peak_anonymous_gb"],
    }
    details = found | {
        "precision": precision,
        "layers_of_the_preset": whole,
        "cpu_seconds_per_layer": processor,
        "peak_disk_gb": done["peak_disk_gb"],
    }
    return headline, details


def quality() -> tuple[dict[str, Any], dict[str, Any]]:
    """Headline and details."""
    import torch
    from crosscheck_modelopt import ROOT, Subject, by_calibration, by_rounding, figures

    from qwenvl_edge_export.quantization.samples import read_samples
    from qwenvl_edge_export.verification.cases import source_case_builder

    details: dict[str, Any] = {"block": BLOCK}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for path in (ROOT / "models" / "nano", ROOT / "tests" / "data" / "tiny"):
            subject = Subject(path, Path(folder))
            found = details[path.name] = {"rounded": figures(subject, by_rounding(subject, BLOCK))}
            samples = {"built-in": read_samples(None, source_case_builder(subject.checkpoint))}
            if path.name == "nano":
                samples["own"] = subject.cases
            for name, subject.cases in samples.items():
                tokens = sum(len(case.prompt.ids) + len(case.answer) for case in subject.cases)
                found[name] = figures(subject, by_calibration(subject, BLOCK)) | {"tokens": tokens}
    asked = {"nano": "unseen", "tiny": "verify"}
    headline = {
        f"{model}_kl": {way: found[on]["kl_mean"] for way, found in details[model].items()}
        for model, on in asked.items()
    }
    return headline, details


def main() -> None:
    """Measure, print, write what was asked for."""
    if sys.argv[1:2] == ["--child"]:
        checkpoint, precision, work = sys.argv[2:]
        print(json.dumps(calibrate(Path(checkpoint), precision, Path(work))))
        return
    parser = arguments(__doc__)
    parser.add_argument("--preset", choices=("tiny", "small", "1b", "full"), default="1b")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="of the checkpoint (default 2)")
    parser.add_argument("--precision", choices=PRECISIONS, default="int4")
    parser.add_argument("--folder", type=Path, help="where to work and to keep the checkpoint; else a temporary folder")
    parser.add_argument("--quality", action="store_true", help="measure what calibration gains instead")
    options = parser.parse_args()
    before = conditions()
    if options.quality:
        finish(options, before, *quality())
        return
    with tempfile.TemporaryDirectory(prefix="calibration-") as temporary:
        folder = options.folder or Path(temporary)
        headline, details = measure(options.preset, options.layers, options.precision, folder)
    print(json.dumps(details, indent=1))
    finish(options, before | {"load_after": round(os.getloadavg()[0], 2)}, headline, details)


if __name__ == "__main__":
    main()
