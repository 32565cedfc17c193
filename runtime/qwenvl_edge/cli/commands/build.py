"""`qwenvl build`: make TensorRT plans of a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qwenvl_edge.cli.export_package import import_export
from qwenvl_edge.machine.signals import terminable
from qwenvl_edge.machine.terminal import ProgressBar, note


def add_build(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("build", help="make TensorRT plans of a bundle for a GPU")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument(
        "--target",
        default="local",
        metavar="T",
        help="the GPU that it is for: local (default), one such as sm_86, orin or h100, or a machine that plan knows",
    )
    parser.add_argument("--max-context", type=int, metavar="N", help="longest conversation in tokens (default 2048)")
    parser.add_argument("--max-batch", type=int, default=1, metavar="N", help="conversations at once (default 1)")
    parser.add_argument("--max-images", type=int, default=1, metavar="N", help="pictures encoded at once (default 1)")
    parser.add_argument("--chunk", type=int, metavar="N", help="tokens of a prompt computed at once (default 256)")
    parser.add_argument(
        "--plugin", type=Path, metavar="FILE", help="the KV-cache plugin, for TensorRT before 10.15 (default: none)"
    )
    parser.add_argument("--strip-weights", action="store_true", help="plans without weights, which the bundle has")
    parser.add_argument("--force", action="store_true", help="replace the target's plan if it is there")
    parser.add_argument("--wait", action="store_true", help="wait for another process that is building the same plan")
    parser.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.bundle.bundle import Bundle
    from qwenvl_edge.cli.boards import gpu_of

    builder = import_export("tensorrt.build", extra="tensorrt")
    bundle = Bundle.open(arguments.bundle)
    limits = builder.choose_limits(
        bundle,
        max_context=arguments.max_context,
        max_batch=arguments.max_batch,
        max_images=arguments.max_images,
        chunk=arguments.chunk,
    )
    with terminable(), ProgressBar(sys.stderr) as progress:
        plan = builder.build(
            bundle,
            gpu_of(arguments.target),
            limits,
            plugin=arguments.plugin,
            force=arguments.force,
            strip=arguments.strip_weights,
            wait=arguments.wait,
            progress=progress,
        )
    sizes = ", ".join(f"{name} {info.size / 1e6:,.1f} MB" for name, info in plan.manifest.files.items())
    note(f"{plan.path} is written: {sizes}")
    return 0
