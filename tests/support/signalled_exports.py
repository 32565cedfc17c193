"""Runs `qwenvl` several times, each in a process of its own that a signal hits at a chosen moment.

On standard input are runs as a JSON list of objects: "arguments" of the program, and the audit event at whose "nth"
occurrence with "text" among its arguments the process sends itself "signal". Their exit codes are the last line of
standard output. Processes are forked, so that PyTorch is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from qwenvl_edge import cli
from qwenvl_edge.machine.terminal import say
from qwenvl_edge_export import export  # noqa: F401 - imported before the fork


def run(each: dict[str, Any]) -> int:
    """One run; returns only if the signal let it."""
    seen = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == each["event"] and each["text"] in str(arguments):
            seen += 1
            if seen == each["nth"]:
                os.kill(os.getpid(), each["signal"])

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # whoever started the tests may have ignored them
    sys.addaudithook(watch)
    return cli.main(each["arguments"])


def main() -> None:
    """Fork for each run and wait for it."""
    codes = []
    for each in json.load(sys.stdin):
        if (pid := os.fork()) == 0:
            os._exit(run(each))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    say(json.dumps(codes))


if __name__ == "__main__":
    main()
