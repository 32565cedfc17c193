"""The demo's answers against what its pictures show, in the precisions that people choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import QwenVLEngine
from support.paths import ROOT
from tools import demo
from tools.nano.demo_pictures import SCENES
from tools.nano.drawing import render
from tools.nano.evaluation import iou
from tools.nano.phrases import COLOUR_ZH, KIND_ZH, article, caption, changed, phrase, sentence, the
from tools.nano.scenes import COLOURS, KINDS, Change, Scene

NANO = ROOT / "models" / "nano"
LEAST_IOU = 0.7
PRECISIONS = {"fp32": {}, "int8": {}, "int4": {"calibration": True}}


def truths(scene: Scene) -> dict[str, object]:
    """Right answers to questions about a picture: text, or a box in parts of its sides."""
    right: dict[str, object] = {
        "Describe the picture.": caption(scene, "en"),
        "描述这张图片。": caption(scene, "zh"),
        "What does the sign say?": scene.sign.text,
    }
    for kind in KINDS:
        found = [thing for thing in scene.things if thing.kind == kind]
        right[f"有几个{KIND_ZH[kind]}?"] = str(len(found))
        for colour in COLOURS:
            there = any(thing.colour == colour for thing in found)
            right[f"Is there {article(phrase((colour, kind), 'en'))}?"] = "Yes." if there else "No."
    for thing in scene.things:  # each kind is there once
        right[f"What colour is the {thing.kind}?"] = f"{sentence(thing.colour)}."
        right[f"{KIND_ZH[thing.kind]}是什么颜色的?"] = f"{COLOUR_ZH[thing.colour]}。"
        for names in ((thing.colour, thing.kind), (None, thing.kind)):
            right[f"Where is {the(names, 'en')}?"] = right[f"{the(names, 'zh')}在哪里?"] = thing.box
        for other in scene.things:
            a, b = (the((each.colour, each.kind), "en") for each in (thing, other))
            side = "left" if thing.box[0] < other.box[0] else "right"
            right[f"Is {a} to the left or to the right of {b}?"] = f"To the {side}."
    return right


def pair_truths(first: Scene, second: Scene) -> dict[str, object]:
    """The same for two pictures, of which the second shows the last thing in another colour."""
    assert first.things[:-1] == second.things[:-1]
    change = Change("colour", first.things[-1], second.things[-1])
    return {"What changed?": changed(change, "en"), "两张图片里的东西一样吗?": "不一样。"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_answer_is_right(nano_exports, precision):
    bundle = nano_exports(precision, check=True, **PRECISIONS[precision])
    engine = QwenVLEngine(bundle, threads=1, max_context=2048)
    for example in demo.asked(NANO):
        scenes = [SCENES[Path(name).stem] for name in example.pictures]
        right = truths(*scenes) if len(scenes) == 1 else pair_truths(*scenes)
        for question in example.questions:
            reply = engine.chat(question, images=[NANO / name for name in example.pictures])
            if isinstance(right[question], str):
                assert reply.text == right[question], question
                continue
            width, height = reply.pictures[0].size
            (box,) = reply.boxes
            found = (box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height)
            assert iou(found, right[question]) >= LEAST_IOU, question


def test_the_program_prints_them(nano, tmp_path, capsys):
    demo.main(str(nano), NANO, tmp_path / "out" / "boxes.png")
    printed = capsys.readouterr().out
    assert all(f"  {question} " in printed for each in demo.asked(NANO) for question in each.questions)
    assert (tmp_path / "out" / "boxes.png").is_file()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme[readme.index("    demo.png:\n") : readme.index("These are some of the questions")]
    for line in filter(None, map(str.split, shown.splitlines())):
        assert " ".join(line) in " ".join(printed.split()), line


def test_the_pictures_are_those_that_are_drawn():
    for name, scene in SCENES.items():
        drawn, kept = render(scene, scale=2.5), Image.open(NANO / f"{name}.png")
        assert drawn.size == kept.size, name
        difference = np.asarray(drawn, np.float32) - np.asarray(kept.convert("RGB"), np.float32)
        assert np.abs(difference).mean() < 3, name  # other versions of Pillow draw edges otherwise
