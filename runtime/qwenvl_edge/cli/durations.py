"""Spans of time on the command line: 500ms, 1.5s, 2min, or a bare number of seconds."""

from __future__ import annotations

import argparse
import re

_UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}
_FORM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|h|)")


def seconds(text: str) -> float:
    """Return a span in seconds; for argparse's `type`, whose error it raises where the text is none."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time; write 500ms, 1s or 2min")
    return float(found.group(1)) * _UNITS[found.group(2)]


def positive_seconds(text: str) -> float:
    """Return a span above zero in seconds; otherwise like `seconds`."""
    span = seconds(text)
    if span <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give more than 0")
    return span
