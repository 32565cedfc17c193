"""The program `qwenvl`: its parser, and the exit codes of its commands.

Exit codes: 0 success, 1 a bundle that fails verification or does not fit a board, 2 an error (one line on stderr),
130 interrupted (128 + its number by another signal).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from qwenvl_edge import __version__
from qwenvl_edge.cli.commands.build import add_build
from qwenvl_edge.cli.commands.chat import add_chat
from qwenvl_edge.cli.commands.doctor import add_doctor
from qwenvl_edge.cli.commands.export import add_export
from qwenvl_edge.cli.commands.plan import add_plan
from qwenvl_edge.cli.commands.verify import add_verify
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.signals import Terminated
from qwenvl_edge.machine.terminal import say
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
    add_export(commands)
    add_build(commands)
    add_verify(commands)
    add_chat(commands)
    add_plan(commands)
    add_serve(commands)
    add_doctor(commands)
    return parser
