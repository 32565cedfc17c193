"""A training as a folder to ship: `python -m tools.nano.talk.publish RUN TARGET [--figures FILE] [--ask BUNDLE ...]`.

TARGET gets the checkpoint with the weights so far, the logs and their curve, example pictures of scenes that were never
trained on with questions that the model answers rightly, and a README. FILE is what `tools.nano.talk.evaluate --save`
wrote. --ask names bundles, exported from an earlier TARGET, that must all answer rightly, instead of the weights in
PyTorch.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.nano.curves import plot_curves
from tools.nano.talk.answering import Answer, open_answerer, trained, with_torch
from tools.nano.talk.cases import Case
from tools.nano.talk.chatting import SINGLE, Conversation
from tools.nano.talk.drawing import render
from tools.nano.talk.evaluate import COLUMNS, LATER, LOSS_FLOOR, LOSS_GOAL, score
from tools.nano.talk.icons import prepare
from tools.nano.talk.pictures import EVALUATION_SEED
from tools.nano.talk.questions import Asker
from tools.nano.talk.scenes import CANVASES, Scene, Stock, sample_scene
from tools.nano.talk.settings import CHECKPOINT_FILES, HEADS, save_half, write_weights
from tools.nano.talk.turns import Turn

Answerer = Callable[[Case], Answer]

FAMILY = {"qwen3_vl": "Qwen3-VL", "qwen": "Qwen-VL"}
SHOWN_STYLES = ("drawn", "fluent", "flat", "noto", "blob")  # the sets that do not ask for attribution
PICTURES = ("one", "two", "three")
TRIED = 12  # scenes for each of them
ASKED = {"en": ("caption", "where", "colour", "count", "read"), "zh": ("caption", "where", "exists")}
CURVES = {
    "vision": ("kind", "colour", "spelling"),
    "talk": ("words", "digits", "text", "words seen", "patches seen", "places seen"),
}
NOTE = "A small model of drawn scenes: {kinds} kinds of things, colours, signs, English and Chinese; no photographs."


@dataclass(frozen=True)
class Shown:
    """An example picture; turns: the questions about it that are answered rightly; asked: how many there were."""

    name: str
    scene: Scene
    turns: tuple[Turn, ...]
    asked: int


def examples(stock: Stock, answerers: Sequence[Answerer], note: Callable[[str], object] = print) -> list[Shown]:
    """Example pictures, each the one of TRIED scenes about which most is answered rightly by all."""
    found = []
    for number, name in enumerate(PICTURES):
        tried = []
        for other in range(TRIED):
            scene = sample_scene(
                stock, 2 * EVALUATION_SEED + other * len(PICTURES) + number, (2, 4), 1.0, CANVASES[number]
            )
            turns = _turns(scene, number)
            right = [turn for turn in turns if _answered(Case(Conversation((turn,), 1), (scene,), stock), answerers)]
            tried.append(Shown(f"{name}.png", scene, tuple(right), len(turns)))
        found.append(max(tried, key=lambda shown: len(shown.turns)))
        note(f"{name}: {len(found[-1].turns)} of {found[-1].asked} questions are answered rightly")
    return found


def _answered(case: Case, answerers: Sequence[Answerer]) -> bool:
    return all(score(case.turn, answer(case)).right for answer in answerers)


def _turns(scene: Scene, number: int) -> list[Turn]:
    asks = {language: Asker(random.Random(f"shown-{number}-{language}"), language) for language in ASKED}
    turns = [SINGLE[task][0](asks[language], scene) for language, tasks in ASKED.items() for task in tasks]
    return [turn for turn in turns if turn]


def figures_table(found: Mapping[str, float]) -> str:
    """The figures with floor and goal as a table in Markdown."""
    lines = ["| figure | measured | floor | goal |", "|---|---|---|---|"]
    for name, value in found.items():
        floor, goal = (LOSS_FLOOR, LOSS_GOAL) if name == LATER else (COLUMNS[name].floor, COLUMNS[name].goal)
        lines.append(
            f"| {name} | {value:.1f} | {floor:.0f} | {goal:.0f} |"
            if name == LATER
            else f"| {name} | {value:.3f} | {floor:.2f} | {goal:.2f} |"
        )
    return "\n".join(lines)


def reached(name: str, value: float) -> bool:
    """Tell whether a figure reaches its floor."""
    return value <= LOSS_FLOOR if name == LATER else value >= COLUMNS[name].floor


def readme(target: Path, kinds: int, measured: Mapping[str, Any] | None) -> str:
    """The README of a finished folder: what the files in it say, and nothing else."""
    config = json.loads((target / "config.json").read_text())
    weights = (target / "model.safetensors").stat().st_size
    last = {}
    for stage in CURVES:
        lines = (target / "training" / f"{stage}.jsonl").read_text().splitlines()
        last[stage] = json.loads(lines[-1])["step"]
    text = f"""# {target.name}

A small trained {FAMILY[config["model_type"]]} in the published layout: {weights / 2e6:.1f} million parameters in
float16, {weights / 1e6:.1f} MB. It is asked about {kinds} kinds of things in drawn scenes, their colours, places and
number, and about signs, in English and Chinese, up to ten questions on one picture. It is no use on photographs.

    qwenvl export models/{target.name} bundle
    qwenvl chat bundle --image models/{target.name}/{PICTURES[0]}.png

## How it was made

By `tools/nano/talk` (its README has the choices): {last["vision"]:,} steps of the picture side, {last["talk"]:,} of
the whole model. `training/` has the logs, `training.png` the curves. The icon sets that its scenes were made of,
and their licences, are listed in tools/nano/talk/LICENCES.md; the pictures here are drawn with those that do not ask
for attribution. Each is the one of {TRIED} scenes about which most is answered rightly, and `qwenvl-examples.json`
offers only what is; `training/examples.json` has the answers.
"""
    if measured:
        below = sum(not reached(name, value) for name, value in measured["figures"].items())
        unfinished = "It is not finished. Figures below the floor: {} of {}."
        text += f"""
## What it answers

{unfinished.format(below, len(measured["figures"])) if below else "All figures reach the floor."}

{measured["count"]:.0f} questions for each part and language, on scenes that were never trained on: `python -m
tools.nano.talk.evaluate BUNDLE --count {measured["count"]:.0f}`, each part in training/figures.json. Less than 0 in the
last line means that later turns are answered better than first ones.

{figures_table(measured["figures"])}
"""
    return text


def publish(
    run: Path,
    target: Path,
    sprites: Path,
    figures: Path | None = None,
    answerers: Sequence[Answerer] = (),
) -> None:
    """Write the folder. answerers: who must answer the examples rightly; nobody: the trained model in PyTorch.

    Raises:
        SystemExit: the training has not begun, or `target` has files that are not of such a folder.
    """
    if not (run / "talk.pt").exists():
        raise SystemExit(f"{run} has no talk.pt; train it first with python -m tools.nano.talk.train.")
    model, composer = trained(run)
    (target / "training").mkdir(parents=True, exist_ok=True)
    for path in (run / "model").iterdir():
        if path.suffix in CHECKPOINT_FILES:
            shutil.copyfile(path, target / path.name)
    write_weights(target, model.published())
    module = torch.load(run / "talk.pt", weights_only=True)["module"]
    heads = {name.removeprefix("heads."): each for name, each in module.items() if name.startswith("heads.")}
    save_half(target / "training" / HEADS, heads)
    for stage in CURVES:
        shutil.copyfile(run / f"{stage}.jsonl", target / "training" / f"{stage}.jsonl")
    plot_curves(target / "training", target / "training.png", CURVES)
    stock = Stock(sprites, SHOWN_STYLES)
    kinds = sum(bool(styles) for styles in Stock(sprites).choices.values())
    _write_examples(target, stock, examples(stock, answerers or [with_torch(model, composer)]), kinds)
    measured = json.loads(figures.read_text(encoding="utf-8")) if figures else None
    (target / "training" / "figures.json").unlink(missing_ok=True)  # of other weights
    if measured:
        _write(target / "training" / "figures.json", measured)
    (target / "README.md").write_text(readme(target, kinds, measured), encoding="utf-8")


def _write_examples(target: Path, stock: Stock, shown: Sequence[Shown], kinds: int) -> None:
    for each in shown:
        render(each.scene, stock).save(target / each.name)
    asked = [{"pictures": [each.name], "questions": [turn.question for turn in each.turns]} for each in shown]
    _write(target / "qwenvl-examples.json", {"note": NOTE.format(kinds=kinds), "examples": asked})
    truths = {
        each.name: [{"task": turn.task, "question": turn.question} | dict(turn.truth) for turn in each.turns]
        for each in shown
    }
    _write(target / "training" / "examples.json", truths)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Publish what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--figures", type=Path, metavar="FILE")
    parser.add_argument("--work", type=Path, help="the sprites' folder, if not RUN's parent")
    parser.add_argument("--ask", type=Path, nargs="+", default=(), metavar="BUNDLE", help="who answers the examples")
    options = parser.parse_args()
    sprites = prepare(options.work or options.run.parent)
    publish(options.run, options.target, sprites, options.figures, [open_answerer(each) for each in options.ask])


if __name__ == "__main__":
    main()
