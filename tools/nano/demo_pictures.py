"""The pictures of the README and of `make demo`: `python -m tools.nano.demo_pictures FOLDER`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tools.nano.drawing import render
from tools.nano.scenes import Scene, Sign, Thing, tilted_quad

CANVAS = (256, 192)
SIGN_BOX = (0.60, 0.07, 0.95, 0.29)
DEMO = Scene(
    canvas=CANVAS,
    things=(
        Thing("mug", "red", (0.06, 0.50, 0.30, 0.86)),
        Thing("car", "blue", (0.36, 0.62, 0.68, 0.87), flipped=True),
        Thing("tree", "green", (0.10, 0.06, 0.31, 0.44)),
        Thing("ball", "yellow", (0.76, 0.60, 0.93, 0.83)),
    ),
    sign=Sign("EXIT", SIGN_BOX, tilted_quad(SIGN_BOX, (88.0, 40.0), 0.0, CANVAS), 0.0, 2, 1),
    background="room",
    look=9,
)
LATER = replace(
    DEMO, things=(DEMO.things[0], DEMO.things[1], DEMO.things[2], Thing("ball", "purple", DEMO.things[3].box)), look=77
)


def main(folder: Path) -> None:
    """Write demo.png and later.png, in which the ball has another colour."""
    for name, scene in (("demo", DEMO), ("later", LATER)):
        render(scene, scale=2.5).save(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
