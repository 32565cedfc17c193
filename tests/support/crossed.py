"""The runtime's files that a call crosses: whoever follows it has to open as many."""

import contextlib
import sys
from pathlib import Path

import qwenvl_edge

PACKAGE = Path(qwenvl_edge.__file__).parent


@contextlib.contextmanager
def crossed(counts=lambda frame, result: True, *, inside=()):
    """Collects the files of the package with a function that `counts`, given its frame, at its call or return.

    inside: functions, of a test's own, whose calls are left out with all that they call.
    """
    files, codes, hidden = set(), {function.__code__ for function in inside}, []

    def note(frame, event, result):
        if frame.f_code in codes and event in ("call", "return"):
            hidden.append(frame) if event == "call" else hidden.pop()
        path = Path(frame.f_code.co_filename)
        if hidden or event not in ("call", "return") or not path.is_relative_to(PACKAGE):
            return
        if counts(frame, result):
            files.add(str(path.relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
