"""`qwenvl completion`: what a shell needs to complete the program's words."""

from __future__ import annotations

import argparse
from typing import Any

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.terminal import say

_SHELLS = ("bash", "zsh", "tcsh")


def add_completion(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the command, which completes what `parser` takes."""
    command = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description='In bash: eval "$(qwenvl completion bash)"; needs the extra completion.',
    )
    command.add_argument("shell", choices=_SHELLS, help="the shell that reads it")
    command.set_defaults(run=lambda arguments: _completion(arguments, parser))


def _completion(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise QwenVLError("this command needs shtab; run: pip install 'qwenvl-edge[completion]'") from None
    say(shtab.complete(parser, shell=arguments.shell), end="")
    return 0
