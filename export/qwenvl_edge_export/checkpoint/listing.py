"""Names in messages: a few examples and a count, however many there are."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

EXAMPLES = 3
LONGEST = 100


def few(names: Collection[str], most: int = EXAMPLES) -> str:
    """The first `most` names, each cut to a bearable length, and how many more there are."""
    shown = ", ".join(shortened(name, 2 * LONGEST) for name in islice(names, most))
    rest = len(names) - most
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 tensor", "1,706 tensors"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, longest: int = LONGEST) -> str:
    """Text of a file as a message can show it: printable, and not long."""
    clean = "".join(each if each.isprintable() else "?" for each in text[: longest + 1])
    return clean if len(clean) <= longest else f"{clean[: longest - 3]}..."
