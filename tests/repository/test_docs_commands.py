"""The commands of the pages: subcommands, options, targets, extras and files of the repository exist, and the menu."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from qwenvl_edge.cli.program import _parser
from support.paths import ROOT

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "DESIGN.md", ROOT / "models" / "nano" / "README.md", *DOCS]
FOLDERS = ("benchmarks", "cpp_ext", "docs", "examples", "models", "release", "tests", "tools")
MADE = {"examples/triton/models/qwenvl/1/bundle"}  # by who follows the page
SUBCOMMANDS = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def spelled(text: str) -> list[list[str]]:
    """The words of every line in an indented block or between backticks; lines that end in a backslash are joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    blocks = [line.strip() for line in lines if line.startswith("    ")]
    inline = re.findall(r"`([^`\n]+)`", text.replace("\n", " "))
    found = []
    for line in (*blocks, *inline):
        try:
            found.append(shlex.split(line, comments=True))
        except ValueError:  # an apostrophe of prose
            continue
    return found


COMMANDS = [
    (str(page.relative_to(ROOT)), words)
    for page in PAGES
    for words in spelled(page.read_text(encoding="utf-8"))
    if words
]


def of(program: str) -> list[tuple[str, list[str]]]:
    """Page and words after the program's name, also after && or time."""
    return [(page, words[i + 1 :]) for page, words in COMMANDS for i, word in enumerate(words) if word == program]


def test_subcommands_and_their_options():
    seen = set()
    for page, words in of("qwenvl"):
        if not words or words[0] not in SUBCOMMANDS:
            assert not words or not re.fullmatch("[a-z]+", words[0]), (page, words)  # prose, or its own output
            continue
        known = {option for action in SUBCOMMANDS[words[0]]._actions for option in action.option_strings}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, (page, words)
        seen.add(words[0])
    assert {"export", "doctor", "build", "chat", "verify", "plan", "serve"} <= seen


def test_targets_of_make():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    words = {words[0] for _, words in of("make") if words}
    assert "plugin" in words and words <= targets


def test_extras_of_pip():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^([\w-]+) = \[", text[text.index("[project.optional-dependencies]") :], re.M))
    asked = {
        extra
        for _, words in of("pip")
        for word in words
        if (found := re.search(r"(?:qwenvl-edge|\.)\[([\w,-]+)\]", word))
        for extra in found[1].split(",")
    }
    assert "tensorrt" in asked and asked <= extras


def test_settings_of_cmake():
    text = "".join(path.read_text() for path in (ROOT / "cpp_ext" / "tensorrt_plugin").rglob("*CMakeLists.txt"))
    settings = {re.match(r"-D(\w+)", word)[1] for _, words in of("cmake") for word in words if word.startswith("-D")}
    assert settings and settings <= set(re.findall(r"\w+", text)) | {"CMAKE_CUDA_ARCHITECTURES"}


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_files_of_the_repository(page):
    paths = {word for name, words in COMMANDS if name == page for word in words if word.startswith(FOLDERS)}
    named = {path for path in paths if re.fullmatch(r"[\w./-]+/[\w./-]+", path)}
    roots = (ROOT, ROOT / "cpp_ext" / "tensorrt_plugin") if page == "docs/plugin.md" else (ROOT,)
    assert not [path for path in named - MADE if not any((root / path).exists() for root in roots)]


def test_the_files_that_design_sends_to_exist():
    table = re.search(r"^## To change X, open Y\n(.*?)^## ", (ROOT / "DESIGN.md").read_text(), re.M | re.S)[1]
    rows = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")]
    named = {path for row in rows for path in re.findall(r"`([\w./]+)`", row)}
    elsewhere = ("export/", "cpp_ext/", "benchmarks/", "tools/")
    roots = {path: ROOT if path.startswith(elsewhere) else ROOT / "runtime" / "qwenvl_edge" for path in named}
    assert len(named) > 30
    assert not [path for path, root in roots.items() if not (root / path).is_file()]


def test_links_between_the_pages_outside_docs():
    outside = [page for page in PAGES if page not in DOCS]  # `make docs` checks the others
    links = {(page, link) for page in outside for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text("utf-8"))}
    assert len(links) > 30
    assert not [(page.name, link) for page, link in links if not (page.parent / link).exists()]


def test_every_page_is_in_the_menu():
    menu = re.search(r"^nav:\n(.*?)^theme:", (ROOT / "mkdocs.yml").read_text(), re.M | re.S)[1]
    assert sorted(re.findall(r"([\w/-]+\.md)$", menu, re.M)) == [str(page.relative_to(ROOT / "docs")) for page in DOCS]
