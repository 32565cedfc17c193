"""`qwenvl chat`: answer one question, or converse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qwenvl_edge.cli.answer_options import add_answer_options, read_overrides
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import note, say

_INTERRUPTED = 130
NO_CHAT = (
    'this bundle is of a base model (chat_format "raw"): it continues the text and does not answer; if its checkpoint '
    "was fine-tuned on conversations, export it again with --chat-format chatml."
)


def add_chat(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("chat", help="answer a question about pictures, or converse")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="answer this and end; without it, converse")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture; repeatable; - reads standard input (default: none)",
    )
    parser.add_argument(
        "--video", metavar="FILE", help="a video file (newer families; needs the extra video; default: none)"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="the most pixels of a picture (newer families; default: the bundle's)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write the picture with its boxes (with PROMPT; default: none)"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system text (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON (with PROMPT)")
    parser.add_argument("--verbose", action="store_true", help="print what ran and how long it took on stderr")
    add_answer_options(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    parser.add_argument(
        "--max-context", type=int, metavar="N", help="longest conversation in tokens (default: the model's)"
    )
    parser.add_argument("--backend", default="auto", metavar="B", help="auto (default), tensorrt or onnxruntime")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cuda or cpu")
    parser.set_defaults(run=_chat)


def _chat(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.cli.console import Console, save_drawing
    from qwenvl_edge.engine import QwenVLEngine

    _check_together(arguments)
    overrides = read_overrides(arguments)
    engine = QwenVLEngine(
        arguments.bundle,
        threads=arguments.threads,
        max_context=arguments.max_context,
        backend=arguments.backend,
        device=arguments.device,
        max_pixels=arguments.max_pixels,
    )
    chosen = (arguments.backend, arguments.device) != ("auto", "auto")
    if arguments.prompt is None or arguments.verbose or chosen:
        say(f"qwenvl: {engine.describe()}", to=sys.stderr)
    if not engine.can_chat:
        say(f"qwenvl: {NO_CHAT}", to=sys.stderr)
    console = Console(
        engine,
        system=arguments.system,
        overrides=overrides,
        form="json" if arguments.json else "text",
        with_times=arguments.verbose,
    )
    for path in arguments.image:
        console.add_picture(_standard_input() if path == "-" else path)
    if arguments.video is not None:
        console.add_video(arguments.video)
    if arguments.prompt is None:
        console.converse()
        return 0
    reply = console.ask(arguments.prompt)
    if arguments.save is not None:
        note(save_drawing(reply, arguments.save), to=sys.stdout if sys.stdout and sys.stdout.isatty() else sys.stderr)
    return _INTERRUPTED if reply.finish_reason == "cancelled" else 0


def _check_together(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with each other, before anything is computed."""
    if arguments.prompt is None:
        if arguments.save is not None:
            raise QwenVLError("--save goes with a PROMPT; in a conversation type /save FILE.")
        if arguments.json:
            raise QwenVLError("--json goes with a PROMPT.")
        if "-" in arguments.image:
            raise QwenVLError("--image - goes with a PROMPT: a conversation reads the standard input.")
    if arguments.image.count("-") > 1:
        raise QwenVLError("the standard input holds one picture; give --image - once.")
    if arguments.save is not None and not (arguments.image or arguments.video):
        raise QwenVLError("--save needs a picture to draw on; give one with --image.")
    if arguments.save is not None and not _is_writable(arguments.save):
        raise QwenVLError(f'--save "{arguments.save}" has the suffix of no picture; give one such as .png or .jpg.')


def _is_writable(path: Path) -> bool:
    """Say if pictures are written in the format of a path's suffix."""
    from PIL import Image

    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise QwenVLError("there is no standard input to read the picture from.")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise QwenVLError(f"cannot read the standard input: {error.strerror}.") from None
