"""The pictures of the README and of `make demo`: `python -m tools.nano.demo_pictures FOLDER`.

Like the pictures of the training they show at most three things beside a sign. They were chosen among many such, so
that every answer of the demo is right; benchmarks/accuracy.py measures how often any answer is right.
`later` is `demo` in another light and with a tree of another colour.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tools.nano.drawing import render
from tools.nano.scenes import Scene, Sign, Thing, sample_scene, tilted_quad

CANVAS = (256, 192)
SIGN_BOX = (0.60, 0.07, 0.95, 0.29)
TREE_BOX = (0.74, 0.42, 0.95, 0.84)
DEMO = Scene(
    canvas=CANVAS,
    things=(
        Thing("mug", "red", (0.06, 0.50, 0.30, 0.86)),
        Thing("car", "blue", (0.36, 0.62, 0.68, 0.87), flipped=True),
        Thing("tree", "green", TREE_BOX),
    ),
    sign=Sign("EXIT", SIGN_BOX, tilted_quad(SIGN_BOX, (88.0, 40.0), 0.0, CANVAS), 0.0, 2, 1),
    background="room",
    look=26,
)
LATER = replace(DEMO, things=(*DEMO.things[:2], Thing("tree", "red", TREE_BOX)), look=77)
SCENES = {
    "demo": DEMO,
    "later": LATER,
    "photo": sample_scene(77_000_043, (3, 4), 1.0),  # things and a tilted sign before a photograph's texture
    "tall": sample_scene(77_000_206, (3, 4), 1.0),
}


def main(folder: Path) -> None:
    """Write the pictures as PNG files."""
    for name, scene in SCENES.items():
        render(scene, scale=2.5).save(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
