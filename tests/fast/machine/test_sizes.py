"""Sizes in words: a little is never shown as nothing."""

import pytest

from qwenvl_edge.machine.sizes import in_words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *((0, "0 MB"), (1000, "0.001 MB"), (890_000, "0.89 MB"), (9_600_000, "9.6 MB"), (22_300_000, "22 MB")),
        *((999_000_000, "999 MB"), (1_000_000_000, "1.0 GB"), (19_300_000_000, "19.3 GB")),
    ],
)
def test_bytes(size, words):
    assert in_words(size) == words
