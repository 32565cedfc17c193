"""The README's figures are those of the result files."""

import pytest
from benchmarks import figures


def test_the_readme_holds_the_result_files_figures():
    text = figures.README.read_text(encoding="utf-8")
    assert {found[2] for found in figures.BLOCK.finditer(text)} == set(figures.MAKERS)
    assert figures.filled(text) == text, "run: python benchmarks/figures.py"


def test_an_old_figure_is_replaced():
    old = "Before.\n<!-- figures: answers -->\n| 7.77 |\n<!-- end -->\nAfter.\n"
    new = figures.filled(old)
    assert new.startswith("Before.\n") and new.endswith("<!-- end -->\nAfter.\n")
    assert "| 7.77 |" not in new and "read the sign" in new
    assert figures.filled(new) == new


def test_an_unknown_block_is_an_error():
    with pytest.raises(KeyError):
        figures.filled("<!-- figures: guesses -->\n<!-- end -->")
