"""The tables of the pages: every column has a heading, and every row as many cells. Nothing is left of a merge."""

import re

from support.paths import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
TABLE = re.compile(r"^ *\|(.+)\|\n *\|[ :|-]+\|\n((?: *\|.+\|\n)*)", re.MULTILINE)


def cells(row: str) -> list[str]:
    """Texts of a row's cells; a bar in a cell is written as \\|."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]


def test_every_column_has_a_heading_and_every_row_its_cells():
    bad, count = [], 0
    for page in PAGES:
        for head, body in TABLE.findall(page.read_text(encoding="utf-8")):
            count += 1
            titles = cells(head)
            if "" in titles:
                bad.append((page.name, head))
            bad += [(page.name, row) for row in body.splitlines() if len(cells(row.strip()[1:-1])) != len(titles)]
    assert count > 50
    assert not bad


def test_no_page_holds_the_marks_of_a_merge():
    marked = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert not [page.name for page in PAGES if marked.search(page.read_text(encoding="utf-8"))]
