"""The program itself: its usage, help, and ends."""

import argparse
import re
import subprocess
import sys

import pytest

import qwenvl_edge
from qwenvl_edge import cli
from qwenvl_edge.cli.program import _parser


def test_usage(capsys):
    for arguments in ([], ["dance"], ["export"], ["verify", "bundle"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and "qwenvl 0" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["qwenvl_edge", "qwenvl_edge.cli"])
def test_modules_that_are_the_program(module):
    def run(*arguments):
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert run("--version").stdout == f"qwenvl {qwenvl_edge.__version__}\n"
    failed = run("plan", "no-bundle-here")
    assert (failed.returncode, failed.stdout) == (2, "") and failed.stderr.startswith("qwenvl: ")


COMMANDS = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_help_is_what_the_option_shows(command, capsys):
    words = [] if command is None else [command]
    assert cli.main(["help", *words]) == 0
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    assert capsys.readouterr().out == shown and shown.endswith("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_takes_a_value_says_its_default(command):
    group_says = {
        action
        for group in COMMANDS[command]._action_groups
        if "default" in (group.description or "")
        for action in group._group_actions
    }
    for action in COMMANDS[command]._actions:
        if not action.option_strings or action.nargs == 0 or action.required or action in group_says:
            continue
        if any(action in group._group_actions for group in COMMANDS[command]._mutually_exclusive_groups):
            continue  # one of them has to be given, or none is
        assert "default" in action.help, (command, action.option_strings)
        if isinstance(action.default, (int, float)) and action.default:
            number = re.search(r"default:? ([\d.]+)(ms)?", action.help)
            assert number and float(number[1]) / (1000 if number[2] else 1) == action.default, action.option_strings
