"""Texts and tables of figures, made from the files in benchmarks/results/."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    """A result file: conditions, headline and details."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float, unit: str = "") -> str:
    """Three significant digits, whole from 100 on."""
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def prose(*sentences: str) -> str:
    """Sentences as a paragraph, 119 characters wide."""
    return textwrap.fill(" ".join(sentences), 119, break_long_words=False, break_on_hyphens=False) + "\n"


def conditions(name: str) -> str:
    """Date and machine of a result file, as a phrase."""
    found = load(name)["conditions"]
    simd = f", {found['simd']}" if "simd" in found else ""
    cores = "one core" if found["cores"] == 1 else f"{found['cores']} cores"
    return f"{found['date']}, {cores} of an {found['cpu']}{simd}, Python {found['python']}"
