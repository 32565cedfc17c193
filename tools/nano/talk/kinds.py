"""The kinds of things and their colours: names in English and Chinese, read from kinds.txt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.nano.phrases import COLOUR_ZH as FIRST_COLOURS


@dataclass(frozen=True)
class Kind:
    """Names of one kind of thing; icon: its name in the icon sets."""

    name: str
    plural: str
    chinese: str
    icon: str


def _read() -> dict[str, Kind]:
    lines = (Path(__file__).parent / "kinds.txt").read_text(encoding="utf-8").splitlines()
    kinds = [Kind(*line.split()) for line in lines if not line.startswith("#")]
    return {kind.name: kind for kind in kinds}


KINDS = _read()
NAMES = tuple(KINDS)
COLOUR_ZH = FIRST_COLOURS | {"brown": "棕色", "pink": "粉色", "grey": "灰色"}
COLOURS = tuple(COLOUR_ZH)
