"""Questions and answers in the form that each family was trained on, for calibration and verification."""

from __future__ import annotations

from collections.abc import Mapping

from qwenvl_edge_export.families.base import DefaultPrompts

_WORDS = (
    ("Hi! What can you do?", "I can look at a picture and say what is in it, where it is, and what is written on it."),
    ("Translate into English: 桌子上有一本书和两支笔。", "There are a book and two pens on the table."),
    ("用一句话说明什么是标定。", "标定就是用样本来确定量化的比例。"),
    ("Count from 1 to 12.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12."),
)
_TAGGED = (
    "<|object_ref_start|>the largest rectangle<|object_ref_end|><|box_start|>(94,305),(717,868)<|box_end|>",
    "<|object_ref_start|>the red disc<|object_ref_end|><|box_start|>(120,240),(480,610)<|box_end|>",
)
_JSON = (
    '```json\n[\n\t{"bbox_2d": [94, 305, 717, 868], "label": "the largest rectangle"}\n]\n```',
    '```json\n[\n\t{"bbox_2d": [120, 240, 480, 610], "label": "the red disc"}\n]\n```',
)


def _prompts(largest: str, found: str) -> DefaultPrompts:
    return DefaultPrompts(
        about_pictures=(
            ("Describe the picture.", "Several rectangles of different sizes and colours lie on a plain ground."),
            ("Find the largest one.", largest),
            ("图里有几个方块？都是什么颜色的？", "图里有八个方块，有红色的、绿色的和灰色的。"),
            ("What does the sign say, and how many are there?", 'It says "OPEN 24". There are 3 of them.'),
        ),
        words=_WORDS,
        found=found,
    )


PROMPTS: Mapping[str, DefaultPrompts] = {
    "qwen2_vl": _prompts(*_TAGGED),
    "qwen2_5_vl": _prompts(*_JSON),
    "qwen3_vl": _prompts(*_JSON),
}
