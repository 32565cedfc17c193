"""models/nano-qwen3 from checkpoint to answers: the questions that its folder offers, alone and in one conversation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.families import open_family
from support.bundles import Exports
from support.paths import ROOT
from tools.nano.talk.answering import read
from tools.nano.talk.evaluate import score
from tools.nano.talk.turns import Turn

NANO = ROOT / "models" / "nano-qwen3"
OFFERED = json.loads((NANO / "qwenvl-examples.json").read_text(encoding="utf-8"))["examples"]
TRUTHS = json.loads((NANO / "training" / "examples.json").read_text(encoding="utf-8"))
PRECISIONS = {"fp32": {}, "int8": {}, "int4": {"calibration": True}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Gives the bundle of a precision, each made once."""
    exports = Exports(NANO, tmp_path_factory.mktemp("nano-qwen3"))
    yield lambda precision: exports(precision, check=True, **PRECISIONS[precision])
    exports.check_unchanged()


def turn_of(truth):
    given = {key: value for key, value in truth.items() if key in ("text", "boxes")}
    return Turn(truth["task"], truth["question"], (), truth=given)


def right(bundle, truth, reply):
    return score(turn_of(truth), read(open_family(bundle.manifest), reply.raw_text)).right == 1


def test_what_is_offered_has_an_answer():
    asked = [(name, question) for each in OFFERED for name in each["pictures"] for question in each["questions"]]
    assert asked == [(name, truth["question"]) for name, truths in TRUTHS.items() for truth in truths]
    assert len(asked) >= 15


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_question_is_answered_rightly(bundle, precision):
    made = bundle(precision)
    assert made.manifest.parity["passed"] or precision == "int4"  # verification asks what it never learnt
    engine = QwenVLEngine(made, threads=1)
    for name, truths in TRUTHS.items():
        for truth in truths:
            reply = engine.chat(truth["question"], images=[NANO / name], do_sample=False)
            assert right(made, truth, reply), (name, truth, reply.raw_text)


def test_the_question_may_come_first_and_others_before_it(bundle):
    """Nine in ten are answered rightly before the picture, and in one conversation about it."""
    made = bundle("fp32")
    engine = QwenVLEngine(made, threads=1)
    first, later = [], []
    for name, truths in TRUTHS.items():
        history = None
        for truth in truths:
            reply = engine.chat([{"text": truth["question"]}, {"image": NANO / name}], do_sample=False)
            first.append(right(made, truth, reply))
            images = [] if history else [NANO / name]
            reply = engine.chat(truth["question"], images=images, history=history, do_sample=False)
            later.append(right(made, truth, reply))
            history = reply.history
    assert np.mean(first) >= 0.9 and np.mean(later) >= 0.9, (first, later)
