"""`qwenvl export`: turn a checkpoint into a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qwenvl_edge.cli.export_package import import_export
from qwenvl_edge.machine.signals import terminable
from qwenvl_edge.machine.terminal import ProgressBar, note


def add_export(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("export", help="turn a checkpoint into a bundle (needs PyTorch)")
    add_export_options(parser)
    parser.set_defaults(run=run_export)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser, which may be another program's."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a folder in the published layout, or org/name of the Hugging Face Hub"
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it is there")
    _add_precision(parser)
    parser.add_argument("--allow-loss", action="store_true", help="keep a bundle that is beyond its precision's limits")
    _add_calibration(parser)
    parser.add_argument("--wait", action="store_true", help="wait for another process that is writing the same bundle")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub's model (default: main)")
    parser.add_argument("--chat-format", metavar="F", help="chatml or raw (Qwen-VL; default: generation_config.json's)")
    for option, which, default in (
        ("--min-pixels", "least", "the checkpoint's"),
        ("--max-pixels", "most", "the checkpoint's, and at most 1,280 tokens"),
    ):
        text = f"{which} pixels of a picture, where the family takes any size (default: {default})"
        parser.add_argument(option, type=int, metavar="N", help=text)
    parser.add_argument("--skip-verify", action="store_true", help="do not compare the bundle with PyTorch")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is stored and computed how."""
    parser.add_argument(
        "--precision",
        metavar="P",
        help="fp32, fp16, bf16, int8, int4 or w8a8 (default: int8 for the CPU, fp16 for a GPU)",
    )
    parser.add_argument(
        "--vision-precision", metavar="P", help="fp32, fp16, bf16, int8 or w8a8 (default: the target's)"
    )
    parser.add_argument(
        "--target",
        default="cpu",
        metavar="T",
        help="what it is for: cpu (default), gpu, or one by name as plan and build take it, such as orin-nano-8gb",
    )
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="weights that share a scale: 32, 64 or 128 (default: 128, or less where that does not divide the layers)",
    )
    parser.add_argument(
        "--head-precision",
        metavar="P",
        help="of the output layer (default: the decoder's; beside int4 int8, for a GPU fp16)",
    )
    parser.add_argument(
        "--keep-fp16",
        action="append",
        default=[],
        metavar="PATTERN",
        help="weights that stay floats; repeatable (default: none)",
    )
    parser.add_argument(
        "--kv-cache",
        default="float",
        metavar="C",
        help="float (default), or int8 for the TensorRT plugin: half the memory",
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add the options of quantizing by samples."""
    parser.add_argument(
        "--calibrate",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="SAMPLES",
        help="quantize by samples of use (GPTQ): a folder of pictures, a JSONL file, or without a value "
        "built-in ones (default: only w8a8 is calibrated)",
    )
    parser.add_argument(
        "--restart-calibration", action="store_true", help="give up an interrupted calibration that had other settings"
    )


def run_export(arguments: argparse.Namespace) -> int:
    """Export as the arguments say; return the exit code. Raises what exit_codes.py turns into a sentence."""
    from qwenvl_edge.bundle.place import check_place
    from qwenvl_edge.cli.boards import kind_of

    check_place(arguments.bundle, force=arguments.force)  # before PyTorch is loaded, which takes seconds
    exporter = import_export("export")
    precision = exporter.ExportPrecision.choose(
        arguments.precision,
        vision=arguments.vision_precision,
        target=kind_of(arguments.target),
        block=arguments.block_size,
        head=arguments.head_precision,
        keep=arguments.keep_fp16,
        kv_cache=arguments.kv_cache,
    )
    notes: list[str] = []

    def remember(sentence: str) -> None:
        notes.append(sentence)
        note(f"qwenvl: {sentence}", to=sys.stderr)

    with terminable(), ProgressBar(sys.stderr) as progress:
        bundle = exporter.export(
            arguments.checkpoint,
            arguments.bundle,
            precision=precision,
            force=arguments.force,
            allow_loss=arguments.allow_loss,
            calibration=arguments.calibrate,
            restart_calibration=arguments.restart_calibration,
            wait=arguments.wait,
            check=not arguments.skip_verify,
            min_pixels=arguments.min_pixels,
            max_pixels=arguments.max_pixels,
            progress=progress,
            revision=arguments.revision,
            chat_format=arguments.chat_format,
            note=remember,
        )
    if kept := [name for name in bundle.manifest.precision.kept.split(", ") if name not in ("", *arguments.keep_fp16)]:
        note(f"no block size divides the inputs of {', '.join(kept)}: they stay floats")
    for sentence in notes:  # again, below the progress that hid them
        note(f"qwenvl: {sentence}", to=sys.stderr)
    note(f"{arguments.bundle} is written")
    return 0
