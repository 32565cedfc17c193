"""models/nano from checkpoint to answers: parity of the export, and a sample of what the accuracy benchmark asks."""

import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge_export.verification.verify import verify
from support.crossed import crossed
from support.paths import ROOT
from tools.nano.answerers import EngineAnswerer
from tools.nano.evaluation import ATTRIBUTES, MULTI_PICTURE, evaluate, headline, iou

NANO = ROOT / "models" / "nano"
MUG = (0.06, 0.50, 0.30, 0.86)  # where tools/nano/demo_pictures.py puts it


@pytest.fixture(scope="module")
def bundle(nano_exports):
    return nano_exports(check=True)


@pytest.fixture(scope="module")
def engine(bundle):
    return QwenVLEngine(bundle, threads=1)


def test_the_bundle_computes_what_the_checkpoint_computes(bundle):
    assert bundle.manifest.parity["passed"]
    assert verify(bundle, NANO).passed


def test_the_demo_picture(engine):
    picture = NANO / "demo.png"
    reply = engine.chat("Where is the red mug?", images=[picture])
    width, height = reply.pictures[0].size
    (box,) = reply.boxes
    assert box.label == "the red mug"
    assert iou((box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height), MUG) > 0.5
    assert reply.finish_reason == "stop"
    follow_up = engine.chat("What colour is the car?", history=reply.history)
    assert follow_up.text == "Blue."
    assert engine.chat("汽车是什么颜色的?", images=[picture]).text == "蓝色。"


def test_an_answer_crosses_few_files(engine):
    """Counts the runtime's files with functions that run, the backend's own included; nothing is known beforehand."""
    engine.forget()
    with crossed() as files:
        reply = engine.chat("Where is the red mug?", images=[NANO / "demo.png"])
    assert len(reply.boxes) == 1 and reply.stats.images_encoded == 1
    assert {"engine.py", "backends/onnxruntime/cpu.py", "decoding/sampler.py", "families/boxes.py"} <= files
    assert len(files) <= 18, sorted(files)


def test_a_raw_prompt_is_continued(engine):
    reply = engine.complete([{"image": NANO / "demo.png"}, {"text": "<ref>the red mug</ref><box>"}])
    (box,) = reply.boxes
    width, height = reply.pictures[0].size
    assert iou((box.x1 / width, box.y1 / height, box.x2 / width, box.y2 / height), MUG) > 0.5


# The project's floor for the nano model; benchmarks/results/accuracy.json holds the figures of 500 questions a task.
FLOOR = {"box_acc50": 0.80, "box_miou": 0.65, "attributes": 0.90, "text_exact": 0.75, "multi_picture": 0.80}
TASKS = ("ground", "read", *ATTRIBUTES, *MULTI_PICTURE)


def test_answers_on_unseen_scenes_reach_the_floor(engine):
    figures = headline(evaluate(EngineAnswerer(engine), 25, TASKS))
    assert {name: figures[name] for name, least in FLOOR.items() if figures[name] < least} == {}
    assert abs(figures["chinese_gap_points"]) <= 5
