"""The program of `make demo`: questions about two pictures, answered by a bundle, with the boxes drawn.

python tools/demo.py BUNDLE PICTURE DRAWN
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.replies.drawing import draw_shapes

QUESTIONS = (
    "Describe the picture.",
    "Where is the red mug?",
    "What colour is the ball?",
    "How many objects are there?",
    "Is there a purple star?",
    "What does the sign say?",
    "汽车在哪里?",
)


def main(bundle: str, picture: Path, drawn: Path) -> None:
    """Ask, print the answers with their times, and draw every box that was found."""
    engine = QwenVLEngine(bundle)
    print(f"\n{picture}:")
    for question in QUESTIONS:
        reply = engine.chat(question, images=[picture])
        boxes = "".join(f"  [{b.x1:.0f}, {b.y1:.0f}, {b.x2:.0f}, {b.y2:.0f}]" for b in reply.boxes)
        print(f"  {question:<32} {reply.text}{boxes}   ({reply.stats.ttft_ms:.0f} ms to the first token)")
    later = picture.with_name("later.png")
    reply = engine.chat("What changed?", images=[picture, later])
    print(f"\n{picture} and {later.name}:\n  What changed?{'':<19} {reply.text}")
    found = [engine.chat(f"Where is the {name}?", images=[picture]) for name in ("red mug", "car", "ball", "sign")]
    drawn.parent.mkdir(parents=True, exist_ok=True)
    draw_shapes(Image.open(picture).convert("RGB"), [box for reply in found for box in reply.boxes]).save(drawn)
    print(f"\nBoxes drawn: {drawn}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
