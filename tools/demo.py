"""The program of `make demo`: questions about the pictures of models/nano, answered by a bundle, the boxes drawn.

python tools/demo.py BUNDLE PICTURES DRAWN
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

from qwenvl_edge import CheckpointError, QwenVLEngine
from qwenvl_edge.bundle.examples import Example, Examples
from qwenvl_edge.replies.drawing import draw_shapes

_COLUMN = 36
_DRAWN = ("red mug", "car", "tree", "sign")


def asked(pictures: Path) -> tuple[Example, ...]:
    """Return the pictures of a folder that are asked about, and the questions."""
    return Examples.read(pictures / "qwenvl-examples.json", CheckpointError).examples


def main(bundle: str, pictures: Path, drawn: Path) -> None:
    """Ask, print the times and answers, and draw the boxes of what lies in the first picture."""
    engine = QwenVLEngine(bundle)
    for example in asked(pictures):
        images = [engine.load_picture(pictures / name) for name in example.pictures]
        print(f"\n{' and '.join(example.pictures)}:")
        for question in example.questions:
            reply = engine.chat(question, images=images)
            boxes = "".join(f"  [{b.x1:.0f}, {b.y1:.0f}, {b.x2:.0f}, {b.y2:.0f}]" for b in reply.boxes)
            print(f"{reply.stats.ttft_ms:7.0f} ms  {_padded(question)}{reply.text}{boxes}")
    first = engine.load_picture(pictures / "demo.png")
    found = [engine.chat(f"Where is the {name}?", images=[first]) for name in _DRAWN]
    drawn.parent.mkdir(parents=True, exist_ok=True)
    draw_shapes(first.to_pil(), [box for reply in found for box in reply.boxes]).save(drawn)
    print(f"\nThe times are those to the first token of an answer. Boxes drawn: {drawn}")


def _padded(text: str) -> str:
    """Fill a column of a terminal, in which Chinese characters are two wide; two spaces follow a longer text."""
    width = sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in text)
    return text + " " * max(2, _COLUMN - width)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
