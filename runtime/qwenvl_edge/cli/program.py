"""The program `qwenvl`: its parser, and the exit codes of its commands.

Exit codes: 0 success, 1 a bundle that fails verification or does not fit a board, 2 an error (one line on stderr) or a
bundle that differs from recorded tensors, 130 interrupted (128 + its number by another signal), 141 the reader of the
output has gone, as SIGPIPE would give it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from qwenvl_edge import __version__
from qwenvl_edge.cli.commands.bench import add_bench
from qwenvl_edge.cli.commands.build import add_build
from qwenvl_edge.cli.commands.chat import add_chat
from qwenvl_edge.cli.commands.completion import add_completion
from qwenvl_edge.cli.commands.doctor import add_doctor
from qwenvl_edge.cli.commands.export import add_export
from qwenvl_edge.cli.commands.info import add_info
from qwenvl_edge.cli.commands.plan import add_plan
from qwenvl_edge.cli.commands.replay import add_replay
from qwenvl_edge.cli.commands.verify import add_verify
from qwenvl_edge.cli.commands.watch import add_watch
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.signals import Terminated
from qwenvl_edge.machine.terminal import OutputError, give_up_output, hold_standard_streams, say
from qwenvl_edge.server.command import add_serve

_ERROR, _INTERRUPTED, _READER_GONE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (default: the command line); return its exit code."""
    hold_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 must not end an answer
    code: int = _ERROR
    try:
        code = _run(argv)
        if sys.stdout is not None:
            say("", end="")  # a failure to write what is buffered still counts
    except QwenVLError as error:
        _complain(str(error))
    except OutputError as error:
        code = _ERROR if error.reason else _READER_GONE
        if error.reason:
            _complain(f"cannot write the output: {error.reason}.")
        give_up_output()
    except OSError as error:
        where = f' "{error.filename}"' if error.filename else ""
        _complain(f"cannot use{where}: {error.strerror}." if error.strerror else f"{error}.")
    except MemoryError:
        _complain("there is not enough memory.")
    except KeyboardInterrupt as interruption:
        if argv is None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends; a second Ctrl-C would add a traceback
        _complain("interrupted")
        code = interruption.code if isinstance(interruption, Terminated) else _INTERRUPTED
    return code


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


def _complain(words: str) -> None:
    say(f"qwenvl: {words}", to=sys.stderr)


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
    return parser
