"""Errors of a command become one line on stderr and an exit code.

Exit codes: 0 success, 1 a bundle that fails verification or does not fit a board, 2 an error (one line on stderr) or a
bundle that differs from recorded tensors, 130 interrupted (128 + its number by another signal), 141 the reader of the
output has gone, as SIGPIPE would give it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.signals import Terminated
from qwenvl_edge.machine.terminal import OutputError, give_up_output, hold_standard_streams, say

_ERROR, _INTERRUPTED, _READER_GONE = 2, 130, 141


def exit_code(run: Callable[[], int], *, ends_process: bool) -> int:
    """Run a command; return its exit code.

    ends_process: the process ends with it, so that a second Ctrl-C may be ignored from then on.
    """
    hold_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 must not end an answer
    code: int = _ERROR
    try:
        code = run()
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
        if ends_process and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program ends; a second Ctrl-C would add a traceback
        _complain("interrupted")
        code = interruption.code if isinstance(interruption, Terminated) else _INTERRUPTED
    return code


def _complain(words: str) -> None:
    say(f"qwenvl: {words}", to=sys.stderr)
