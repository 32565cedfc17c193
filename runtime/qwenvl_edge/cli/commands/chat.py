"""`qwenvl chat`: answer one question, or converse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say

_INTERRUPTED = 130
NO_CHAT = (
    'this bundle is of a base model (chat_format "raw"): it continues the text and does not answer; if its checkpoint '
    "was fine-tuned on conversations, export it again with --chat-format chatml."
)


def add_chat(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("chat", help="answer a question about pictures, or converse")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="answer this and end; without it, converse")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; repeatable")
    parser.add_argument("--video", metavar="FILE", help="a video file (newer families; needs the extra video)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="the most pixels of a picture (newer families)")
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
        max_pixels=arguments.max_pixels,
    )
    if arguments.prompt is None or (arguments.backend, arguments.device) != ("auto", "auto"):
        say(f"qwenvl: {engine.describe()}", to=sys.stderr)
    if not engine.can_chat:
        say(f"qwenvl: {NO_CHAT}", to=sys.stderr)
    console = Console(engine, system=arguments.system, overrides=_overrides(arguments))
    for path in arguments.image:
        console.add_picture(path)
    if arguments.video is not None:
        console.add_video(arguments.video)
    if arguments.prompt is None:
        console.converse()
        return 0
    reply = console.ask(arguments.prompt)
    if arguments.save is not None:
        save_drawing(reply, arguments.save)
    return _INTERRUPTED if reply.finish_reason == "cancelled" else 0


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    overrides: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed}
    if arguments.greedy:
        overrides["do_sample"] = False
    return {name: value for name, value in overrides.items() if value is not None}
