"""The figures of README.md and docs/figures.md are those of the result files."""

import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a program in that folder
import figures


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_a_page_holds_the_figures_of_the_result_files(page):
    text = page.read_text(encoding="utf-8")
    assert figures.BLOCK.search(text)
    assert figures.filled(text) == text, "run: python benchmarks/figures.py"


def test_every_figure_is_on_one_page():
    found = [block[2] for page in figures.PAGES for block in figures.BLOCK.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(figures.MAKERS)


def test_an_old_figure_is_replaced():
    old = "Before.\n<!-- figures: answers -->\n| 7.77 |\n<!-- end -->\nAfter.\n"
    new = figures.filled(old)
    assert new.startswith("Before.\n") and new.endswith("<!-- end -->\nAfter.\n")
    assert "| 7.77 |" not in new and "read the sign" in new
    assert figures.filled(new) == new


def test_an_unknown_block_is_an_error():
    with pytest.raises(KeyError):
        figures.filled("<!-- figures: guesses -->\n<!-- end -->")
