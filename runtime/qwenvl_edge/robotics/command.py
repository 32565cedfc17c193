"""The common part of the nodes' command lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwenvl_edge.engine import QwenVLEngine
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.memory import keep_freed
from qwenvl_edge.machine.terminal import say
from qwenvl_edge.robotics.node import NodeSettings


def node_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the bundle, the engine's limits and those of an answer."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder that `qwenvl export` wrote")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest prompt with its answer, in tokens")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer in tokens")
    parser.add_argument("--max-age-ms", type=float, metavar="MS", help="answer about no older frame")
    parser.add_argument("--deadline-ms", type=float, metavar="MS", help="end an answer with what was said by then")
    return parser


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add a standing prompt and its rate."""
    parser.add_argument("--prompt", metavar="TEXT", help="ask this about every new frame")
    parser.add_argument("--max-rate-hz", type=float, metavar="HZ", help="ask it so many times a second at most")


def open_engine(arguments: argparse.Namespace) -> QwenVLEngine:
    """Open the engine that node_parser's options describe; its errors are those of QwenVLEngine."""
    return QwenVLEngine(arguments.bundle, threads=arguments.threads, max_context=arguments.max_context)


def read_settings(arguments: argparse.Namespace) -> NodeSettings:
    """Return the node's settings; raises QwenVLError where one is out of range."""
    names = ("prompt", "max_rate_hz", "max_age_ms", "max_new_tokens", "deadline_ms")
    given: dict[str, Any] = {name: getattr(arguments, name, None) for name in names}
    return NodeSettings(**given)


def run_command(program: str, command: Callable[[], None]) -> int:
    """Run a node; return its exit code: 0, 2 for an error (one line on stderr), 130 interrupted."""
    keep_freed()
    try:
        command()
    except QwenVLError as error:
        say(f"{program}: {error}", to=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
