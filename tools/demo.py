"""The program of `make demo`: questions about the pictures of models/nano, answered by a bundle, the boxes drawn.

python tools/demo.py BUNDLE PICTURES DRAWN
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.replies.drawing import draw_shapes

_COLUMN = 62
ASKED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("demo",),
        (
            "Describe the picture.",
            "Where is the red mug?",
            "What colour is the car?",
            "Is the red mug to the left or to the right of the blue car?",
            "Is there a purple star?",
            "What does the sign say?",
            "汽车在哪里?",
        ),
    ),
    (("demo", "later"), ("What changed?", "两张图片里的东西一样吗?")),
    (("photo",), ("Where is the black fish?", "描述这张图片。", "What does the sign say?")),
    (("tall",), ("What colour is the heart?", "有几个爱心?", "紫色的球在哪里?")),
)
"""Names of pictures, and the questions about them."""
_DRAWN = ("red mug", "car", "tree", "sign")


def main(bundle: str, pictures: Path, drawn: Path) -> None:
    """Ask, print the answers with their times, and draw the boxes of what lies in the first picture."""
    engine = QwenVLEngine(bundle)
    for names, questions in ASKED:
        images = [engine.load_picture(pictures / f"{name}.png") for name in names]
        print(f"\n{' and '.join(f'{name}.png' for name in names)}:")
        for question in questions:
            reply = engine.chat(question, images=images)
            boxes = "".join(f"  [{b.x1:.0f}, {b.y1:.0f}, {b.x2:.0f}, {b.y2:.0f}]" for b in reply.boxes)
            print(f"  {_padded(question)}{reply.text}{boxes}   ({reply.stats.ttft_ms:.0f} ms to the first token)")
    first = engine.load_picture(pictures / "demo.png")
    found = [engine.chat(f"Where is the {name}?", images=[first]) for name in _DRAWN]
    drawn.parent.mkdir(parents=True, exist_ok=True)
    draw_shapes(first.to_pil(), [box for reply in found for box in reply.boxes]).save(drawn)
    print(f"\nBoxes drawn: {drawn}")


def _padded(text: str) -> str:
    """Fill a column of a terminal, in which Chinese characters are two wide."""
    width = sum(1 + (unicodedata.east_asian_width(each) in "WF") for each in text)
    return text + " " * max(1, _COLUMN - width)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
