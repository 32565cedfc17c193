"""The program `qwenvl`: export, build, verify, chat, plan.

Exit codes: 0 success, 1 a bundle that fails verification or does not fit a board, 2 an error (one line on stderr),
130 interrupted (128 + its number by another signal).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenvl_edge import __version__
from qwenvl_edge.cli.doctor import add_doctor
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.signals import Terminated, terminable
from qwenvl_edge.machine.terminal import ProgressBar, say
from qwenvl_edge.server.command import add_serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: the command line); return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 must not end an answer
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except QwenVLError as error:
        say(f"qwenvl: {error}", to=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        say("qwenvl: interrupted", to=sys.stderr)
        return interruption.code if isinstance(interruption, Terminated) else 130
    return code


class _InterleavedParser(argparse.ArgumentParser):
    """Takes positionals after options too: a plain parser has settled PROMPT as missing by the time --image comes."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse's intermixed variant does (which calls this method for its two passes)."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwenvl", description="Qwen-VL on the edge: export checkpoints, ask bundles.")
    parser.add_argument("--version", action="version", version=f"qwenvl {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_InterleavedParser
    )
    _add_export(commands)
    _add_build(commands)
    _add_verify(commands)
    _add_chat(commands)
    _add_plan(commands)
    add_serve(commands)
    add_doctor(commands)
    return parser


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="turn a checkpoint into a bundle (needs PyTorch)")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder in the published layout")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it is there")
    parser.add_argument(
        "--precision", default="fp32", metavar="P", help="fp32, fp16, bf16, int8, int4 or w8a8 (default fp32)"
    )
    parser.add_argument(
        "--vision-precision", metavar="P", help="fp32, fp16, bf16, int8 or w8a8 (default: the target's)"
    )
    parser.add_argument("--target", default="cpu", metavar="T", help="where it will run: cpu (default) or gpu")
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="weights that share a scale: 32, 64, 128 (default: 128 for the CPU, 32 for a GPU, or what divides)",
    )
    parser.add_argument("--head-precision", metavar="P", help="of the output layer (default: int8 with int4)")
    parser.add_argument(
        "--keep-fp16", action="append", default=[], metavar="PATTERN", help="weights that stay floats; repeatable"
    )
    parser.add_argument(
        "--kv-cache",
        default="float",
        metavar="C",
        help="float (default), or int8 for the TensorRT plugin: half the memory",
    )
    parser.add_argument("--allow-loss", action="store_true", help="keep a bundle that is beyond its precision's limits")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="SAMPLES",
        help="quantize by samples of use (GPTQ): a folder of pictures, a JSONL file, or without a value built-in ones",
    )
    parser.add_argument("--skip-verify", action="store_true", help="do not compare the bundle with PyTorch")
    parser.set_defaults(run=_export)


def _add_build(commands: Any) -> None:
    parser = commands.add_parser("build", help="make TensorRT plans of a bundle for a GPU")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--target", default="local", metavar="T", help="local (default), sm_75 .. sm_121, orin, h100")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest conversation in tokens (default 2048)")
    parser.add_argument("--max-batch", type=int, default=1, metavar="N", help="conversations at once (default 1)")
    parser.add_argument("--max-images", type=int, default=1, metavar="N", help="pictures encoded at once (default 1)")
    parser.add_argument("--chunk", type=int, metavar="N", help="tokens of a prompt computed at once (default 256)")
    parser.add_argument("--plugin", type=Path, metavar="FILE", help="the KV-cache plugin, for TensorRT before 10.15")
    parser.add_argument("--strip-weights", action="store_true", help="plans without weights, which the bundle has")
    parser.add_argument("--force", action="store_true", help="replace the target's plan if it is there")
    parser.set_defaults(run=_build)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser("verify", help="compare a bundle with its checkpoint (needs PyTorch)")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CHECKPOINT")
    parser.add_argument(
        "--backend", default="onnxruntime", metavar="B", help="onnxruntime (default), or tensorrt: this machine's plan"
    )
    parser.set_defaults(run=_verify)


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser("chat", help="answer a question about pictures, or converse")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="answer this and end; without it, converse")
    parser.add_argument("--image", action="append", default=[], type=Path, metavar="FILE", help="a picture; repeatable")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the picture with its boxes (with PROMPT)")
    parser.add_argument("--system", metavar="TEXT", help="the system text")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer in tokens")
    parser.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest conversation in tokens")
    parser.add_argument("--backend", default="auto", metavar="B", help="auto (default), tensorrt or onnxruntime")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cuda or cpu")
    parser.set_defaults(run=_chat)


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser("plan", help="say how much memory a bundle takes, by part")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest conversation in tokens")
    parser.add_argument("--max-batch", type=int, default=1, metavar="B", help="conversations at once")
    parser.add_argument("--target", metavar="BOARD", help='say whether it fits there; "all" compares all known boards')
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.backends.memory_estimate import plan_memory
    from qwenvl_edge.bundle.bundle import Bundle
    from qwenvl_edge.cli.boards import BOARDS, find_board, plan_for, table

    bundle = Bundle.open(arguments.bundle)
    limits = {
        "max_context": arguments.max_context or bundle.manifest.model.max_position_embeddings,
        "max_batch": arguments.max_batch,
    }
    if arguments.target is None:
        say(plan_memory(bundle, **limits).table())
        return 0
    if arguments.target == "all":
        say(table([plan_for(bundle, board, **limits) for board in BOARDS.values()]))
        return 0
    fit = plan_for(bundle, find_board(arguments.target), **limits)
    say(fit.plan.table())
    say(fit.describe())
    return 0 if fit.fits else 1


def _export(arguments: argparse.Namespace) -> int:
    exporter = _export_package("export")
    precision = exporter.ExportPrecision.choose(
        arguments.precision,
        vision=arguments.vision_precision,
        target=arguments.target,
        block=arguments.block_size,
        head=arguments.head_precision,
        keep=arguments.keep_fp16,
        kv_cache=arguments.kv_cache,
    )
    with terminable(), ProgressBar(sys.stderr) as progress:
        exporter.export(
            arguments.checkpoint,
            arguments.bundle,
            precision=precision,
            force=arguments.force,
            allow_loss=arguments.allow_loss,
            calibration=arguments.calibrate,
            check=not arguments.skip_verify,
            progress=progress,
        )
    say(f"{arguments.bundle} is written")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.bundle.bundle import Bundle

    builder = _export_package("tensorrt.build", extra="tensorrt")
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
            arguments.target,
            limits,
            plugin=arguments.plugin,
            force=arguments.force,
            strip=arguments.strip_weights,
            progress=progress,
        )
    sizes = ", ".join(f"{name} {info.size / 1e6:,.1f} MB" for name, info in plan.manifest.files.items())
    say(f"{plan.path} is written: {sizes}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    report = _export_package("verification.verify").verify(
        arguments.bundle, arguments.checkpoint, backend=arguments.backend
    )
    say(report.table())
    return 0 if report.passed else 1


def _export_package(module: str, extra: str = "export") -> Any:
    try:
        return importlib.import_module(f"qwenvl_edge_export.{module}")
    except ModuleNotFoundError as error:
        raise QwenVLError(
            f"this command needs {error.name}, which is not installed; run: pip install 'qwenvl-edge[{extra}]'"
        ) from error


def _chat(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.cli.console import Console, save_drawing
    from qwenvl_edge.engine import QwenVLEngine

    if arguments.save is not None and arguments.prompt is None:
        raise QwenVLError("--save goes with a PROMPT; in a conversation type /save FILE.")
    engine = QwenVLEngine(
        arguments.bundle,
        threads=arguments.threads,
        max_context=arguments.max_context,
        backend=arguments.backend,
        device=arguments.device,
    )
    if arguments.prompt is None or (arguments.backend, arguments.device) != ("auto", "auto"):
        say(f"qwenvl: {engine.describe()}", to=sys.stderr)
    console = Console(engine, system=arguments.system, overrides=_overrides(arguments))
    for path in arguments.image:
        console.add_picture(str(path))
    if arguments.prompt is None:
        console.converse()
        return 0
    reply = console.ask(arguments.prompt)
    if arguments.save is not None:
        save_drawing(reply, arguments.save)
    return 0


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    overrides: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    if arguments.greedy:
        overrides["do_sample"] = False
    return {name: value for name, value in overrides.items() if value is not None}
