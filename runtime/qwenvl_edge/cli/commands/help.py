"""`qwenvl help`: the help of the program, or of one of its commands."""

from __future__ import annotations

import argparse
from typing import Any

from qwenvl_edge.machine.terminal import say


def add_help(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the command, which shows the help of `parser` and of the commands that were added before."""
    command = commands.add_parser("help", help="show this help, or that of a command")
    names = tuple(commands.choices)
    command.add_argument("command", nargs="?", choices=names, metavar="COMMAND", help="one of those that help lists")

    def show(arguments: argparse.Namespace) -> int:
        asked = parser if arguments.command is None else commands.choices[arguments.command]
        say(asked.format_help(), end="")
        return 0

    command.set_defaults(run=show)
