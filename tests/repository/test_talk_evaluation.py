"""The figures of tools/nano/talk: what is asked, and how answers are scored."""

import json

import pytest
import torch
from safetensors.torch import load_file

from qwenvl_edge import CheckpointError
from qwenvl_edge.bundle.examples import Examples
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from support.paths import ROOT
from support.talk import narrow, write_sprites
from tools.nano.talk.answering import Answer
from tools.nano.talk.cases import PARTS, cases
from tools.nano.talk.dense import DenseHeads
from tools.nano.talk.evaluate import COLUMNS, LATER, evaluate, figures, main, score, table
from tools.nano.talk.forms import on_grid
from tools.nano.talk.icons import KEPT_OUT
from tools.nano.talk.probe import probe
from tools.nano.talk.publish import publish, reached
from tools.nano.talk.questions import wordings
from tools.nano.talk.scenes import Stock
from tools.nano.talk.settings import HEADS, create, new_model, open_folder, write_weights
from tools.nano.talk.turns import LANGUAGES, Places, Said


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("sprites"))


def right_answer(case):
    """The taught answer as it would be read, on the grid that models write."""
    boxes, points, labels = [], [], []
    for part in case.turn.answer:
        if isinstance(part, Places):
            labels.append(part.label)
            for box in part.boxes:
                x0, y0, x1, y1 = (v / 1000 for v in on_grid(box))
                points += [((x0 + x1) / 2, (y0 + y1) / 2)] if part.point else []
                boxes += [] if part.point else [(x0, y0, x1, y1)]
    text = "".join(part.text for part in case.turn.answer if isinstance(part, Said))
    return Answer(text, tuple(boxes), tuple(points), tuple(labels))


def captions_wrong(case):
    """All but captions answered rightly."""
    return Answer("", (), (), ()) if case.turn.task == "caption" else right_answer(case)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("part", PARTS)
def test_right_answers_score_and_others_do_not(sprites, part, language):
    for case in cases(part, 4, language, sprites):
        assert score(case.turn, right_answer(case)).right == 1
        assert score(case.turn, Answer("Perhaps.", (), (), ())).right == 0
        assert score(case.turn, Answer("", ((0.0, 0.0, 0.01, 0.01),), (), ())).right == 0
        overlap = score(case.turn, right_answer(case)).iou
        assert overlap is None or overlap > 0.95


def test_captions_may_name_things_in_another_order(sprites):
    case = next(c for c in cases("caption", 30, "en", sprites) if c.turn.truth["text"].count(",") == 1)
    first, rest = case.turn.truth["text"].rstrip(".").split(", ")
    middle, last = rest.split(" and ", 1)
    swapped = f"{middle.capitalize()}, {first[0].lower()}{first[1:]} and {last}."
    assert score(case.turn, Answer(swapped, (), (), ())).right == 1
    assert score(case.turn, Answer(f"{middle.capitalize()} and {last}.", (), (), ())).right == 0
    assert score(case.turn, Answer(f"{swapped[:-1]} and a zebra.", (), (), ())).right == 0


def test_parts_ask_what_they_say(sprites):
    for case in cases("new style", 20, "en", sprites):
        assert {thing.style for scene in case.scenes for thing in scene.things} == {KEPT_OUT}
    for case in cases("later turn", 20, "zh", sprites):
        assert len(case.talk.turns) >= 3
    for case in cases("first turn", 5, "zh", sprites):
        assert len(case.talk.turns) == 1
    trained = {text for each, _ in wordings().values() for text in each}
    assert not {case.turn.question for case in cases("new wordings", 20, "en", sprites)} & trained


def test_both_languages_ask_about_the_same_scenes(sprites):
    english, chinese = ([c.scenes for c in cases("where", 10, lang, sprites)] for lang in LANGUAGES)
    assert english == chinese


def test_the_table_has_every_figure_with_floor_and_goal(sprites):
    results = evaluate(right_answer, lambda part, lang: list(cases(part, 2, lang, sprites)), progress=lambda _: None)
    found = figures(results)
    assert set(found) == {*COLUMNS, LATER}
    assert all(value == 1 for name, value in found.items() if name not in (LATER, "boxes, mean IoU"))
    lines = table(found | {"count": 0.9, LATER: 5.0}).splitlines()
    said = {line[:44].strip(): line.split("  ")[-1].strip() for line in lines[1:]}
    assert (
        said["count"] == "floor"
        and said[LATER] == "below the floor"
        and said["caption: every thing, nothing else"] == "goal"
    )


@pytest.fixture(scope="module")
def run(sprites, tmp_path_factory):
    """An untrained run, narrow, whose answers are noise."""
    folder = tmp_path_factory.mktemp("work") / "run"
    create(folder / "model", Stock(sprites), scenes=60, ranks=700)
    config = narrow(json.loads((folder / "model" / "config.json").read_text()))
    (folder / "model" / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model", new_model(config).published())
    return folder


def test_parts_asked_side_by_side_give_the_same_figures(run, sprites, tmp_path):
    found = []
    for processes in ("1", "2"):
        saved = tmp_path / f"{processes}.json"
        options = ["--work", str(sprites.parent), "--count", "1", "--parts", "where", "colour", "--save", str(saved)]
        main([str(run), *options, "--processes", processes])
        found.append(json.loads(saved.read_text()))
    assert found[0] == found[1]
    assert set(found[0]["parts"]) == {"where", "colour"} and found[0]["count"] == 1
    assert found[0]["parts"]["where"]["zh"]["count"] == 1


def test_what_the_readmes_say_of_the_figures():
    found = json.loads((ROOT / "models" / "nano-qwen3" / "training" / "figures.json").read_text())["figures"]
    below = [name for name, value in found.items() if not reached(name, value)]
    said = f"{len(below)} of {len(found)}"
    assert below == ["count"] and f"{said} figures, counting, is low" in (ROOT / "README.md").read_text()
    assert f"Figures below the floor: {said}." in (ROOT / "models" / "nano-qwen3" / "README.md").read_text()


def test_a_training_is_published_whole(run, sprites, tmp_path):
    """The folder exports as it is; its pictures ask what the scenes answer, its README says the figures of a file."""
    target = tmp_path / "nano-small"
    with pytest.raises(SystemExit, match=r"has no talk\.pt; train it first"):
        publish(run, target, sprites)
    model, _ = open_folder(run / "model")
    torch.nn.init.normal_(model.lm_head.weight)
    heads = DenseHeads(model.width)
    module = torch.nn.ModuleDict({"model": model, "heads": heads})
    torch.save({"module": module.state_dict()}, run / "talk.pt")
    for stage in ("vision", "talk"):
        (run / f"{stage}.jsonl").write_text("".join(f'{{"step": {n}, "kind": 0.{n}, "text": 0.5}}\n' for n in (3, 6)))
    (tmp_path / "figures.json").write_text(json.dumps({"count": 300, "figures": {"count": 0.9312, LATER: 1.5}}))
    publish(run, target, sprites, tmp_path / "figures.json", [captions_wrong])
    assert Checkpoint.open(target).tensor("lm_head.weight").equal(model.published()["lm_head.weight"].half())
    shown = Examples.read(target / "qwenvl-examples.json", CheckpointError)
    truth = json.loads((target / "training" / "examples.json").read_text())
    for example in shown.examples:
        (name,) = example.pictures
        assert (target / name).exists()
        assert [each["question"] for each in truth[name]] == list(example.questions)
        assert {each["task"] for each in truth[name]} >= {"where", "read"}
        assert "caption" not in {each["task"] for each in truth[name]}  # what is answered wrongly is not offered
    text = (target / "README.md").read_text()
    assert "| count | 0.931 | 0.88 | 0.93 |" in text and "| 1.5 | 4 | 2 |" in text and "6 of\nthe whole model" in text
    assert "All figures reach the floor." in text and reached(LATER, 4.0) and not reached("count", 0.87)
    assert json.loads((target / "training" / "figures.json").read_text())["count"] == 300
    assert (target / "training.png").stat().st_size > 1000

    publish(run, target, sprites, answerers=[right_answer])
    assert not (target / "training" / "figures.json").exists()  # they were those of other weights
    assert "What it answers" not in (target / "README.md").read_text()

    seen = probe(target, sprites, scenes=3)
    assert set(seen) == {"kind", "colour", "spelling", "off"}
    assert seen["kind"] < 0.3 < seen["off"] * 10  # untrained: it guesses

    create(tmp_path / "next" / "model", Stock(sprites), start=target)
    again, _ = open_folder(tmp_path / "next" / "model")
    assert again.published()["lm_head.weight"].equal(model.published()["lm_head.weight"].half().float())
    assert load_file(tmp_path / "next" / HEADS)["read.weight"].equal(heads.read.weight.half())
    (target / "config.json").write_text('{"model_type": "qwen"}')
    with pytest.raises(SystemExit, match=r"is a qwen; a qwen3_vl begins with a folder"):
        create(tmp_path / "other" / "model", Stock(sprites), start=target)
