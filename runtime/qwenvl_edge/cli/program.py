"""The program `qwenvl`: its parser. exit_codes.py says what its exit codes mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from qwenvl_edge import __version__
from qwenvl_edge.cli.commands.bench import add_bench
from qwenvl_edge.cli.commands.build import add_build
from qwenvl_edge.cli.commands.chat import add_chat
from qwenvl_edge.cli.commands.completion import add_completion
from qwenvl_edge.cli.commands.doctor import add_doctor
from qwenvl_edge.cli.commands.export import add_export
from qwenvl_edge.cli.commands.help import add_help
from qwenvl_edge.cli.commands.info import add_info
from qwenvl_edge.cli.commands.plan import add_plan
from qwenvl_edge.cli.commands.replay import add_replay
from qwenvl_edge.cli.commands.verify import add_verify
from qwenvl_edge.cli.commands.watch import add_watch
from qwenvl_edge.cli.exit_codes import exit_code
from qwenvl_edge.machine.terminal import say
from qwenvl_edge.server.command import add_serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: the command line); return its exit code."""
    return exit_code(lambda: _run(argv), ends_process=argv is None)


def _run(argv: Sequence[str] | None) -> int:
    """Parse and run; the parser itself ends the program for --help, --version and wrong words."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit:
        if sys.stdout is not None:
            say("", end="")
        raise
    code: int = arguments.run(arguments)
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
    add_replay(commands)
    add_watch(commands)
    add_info(commands)
    add_bench(commands)
    add_doctor(commands)
    add_completion(commands, parser)
    add_help(commands, parser)
    return parser
