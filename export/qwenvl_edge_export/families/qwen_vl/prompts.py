"""Questions and answers in the form that Qwen-VL was trained on, for calibration."""

from __future__ import annotations

from qwenvl_edge_export.families.base import DefaultPrompts

PROMPTS = DefaultPrompts(
    about_pictures=(
        ("Describe the picture.", "Several rectangles of different sizes and colours lie on a plain ground."),
        ("Find the largest one.", "<ref>the largest rectangle</ref><box>(94,305),(717,868)</box>"),
        ("图里有几个方块？都是什么颜色的？", "图里有八个方块，有红色的、绿色的和灰色的。"),
        ("What does the sign say, and how many are there?", 'It says "OPEN 24". There are 3 of them.'),
    ),
    words=(
        (
            "Hi! What can you do?",
            "I can look at a picture and say what is in it, where it is, and what is written on it.",
        ),
        ("Translate into English: 桌子上有一本书和两支笔。", "There are a book and two pens on the table."),
        ("用一句话说明什么是标定。", "标定就是用样本来确定量化的比例。"),
        ("Count from 1 to 12.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12."),
    ),
    found="<ref>the red disc</ref><box>(120,240),(480,610)</box>",
)
