"""The nano model's scenes, questions, scoring and training sequences."""

import random

import numpy as np
import pytest
import torch

from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.inputs.prompt import PromptBuilder, parse_message
from qwenvl_edge.inputs.tokenizer import Tokenizer
from support.paths import ROOT
from support.scripted import family_of
from tools.nano.answerers import items
from tools.nano.batches import collate
from tools.nano.dense import CHARACTERS, KIND, SIGN, differences, targets
from tools.nano.drawing import render
from tools.nano.evaluation import TASKS, cases, iou, read_answer, score
from tools.nano.focus import NUMBERS, PATCHES, PLACES, WORDS
from tools.nano.model import new_model
from tools.nano.phrases import COLOUR_ZH
from tools.nano.scenes import COLOURS, change_scene, sample_scene, sample_signs
from tools.nano.sequences import Composer
from tools.nano.several_tasks import several_dialogues
from tools.nano.signs import letter_boxes
from tools.nano.tasks import single_dialogues
from tools.nano.train_language import answer_loss
from tools.nano.vocabulary import Codec, corpus, learn
from tools.nano.vocabulary import write as write_vocabulary

IMAGE_TOKENS = 64
NANO_VOCABULARY = ROOT / "models" / "nano" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("nano") / "qwen.tiktoken"
    write_vocabulary(path, ranks=400)
    return path


def dialogues(seed, count=6):
    return single_dialogues(random.Random(seed), sample_scene(seed), count)


def test_a_seed_gives_one_picture():
    assert sample_scene(7) == sample_scene(7) != sample_scene(8)
    first, second = (np.asarray(render(sample_scene(7))) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("seed", range(20))
def test_things_and_letters_lie_in_the_picture(seed):
    for scene in (sample_scene(seed), sample_signs(seed)):
        boxes = [thing.box for thing in scene.things] + [sign.box for sign in scene.signs]
        assert boxes and all(0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in boxes)
        for sign in scene.signs:
            letters = letter_boxes(sign, scene.canvas)
            assert len(letters) == len(sign.text)
            assert all(iou(letter, sign.box) > 0 for letter in letters)
            assert [b[0] for b in letters] == sorted(b[0] for b in letters)


def test_patch_targets_name_what_covers_the_patch():
    scene = sample_signs(3)
    labels, rest = targets(scene)
    assert (labels[:, KIND] == SIGN).any()
    spelt = {CHARACTERS[i] for i in np.flatnonzero(rest[:, 4:].any(0))}
    assert spelt == set("".join(sign.text for sign in scene.signs))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_and_others_do_not(task, language):
    for case in cases(task, 5, language):
        answer = case.dialogue.turns[-1].answer
        assert score(case.dialogue, answer).right == 1
        assert score(case.dialogue, "Perhaps.").right == 0
        assert all(overlap is None or overlap > 0.9 for overlap in [score(case.dialogue, answer).iou])


def test_boxes_are_read_from_markup():
    text, boxes = read_answer("<ref>EXIT</ref><quad>(10,20),(30,22),(30,40),(10,38)</quad>")
    assert (text, boxes) == ("EXIT", [(0.01, 0.02, 0.03, 0.04)])


def test_words_on_signs_are_not_learnt_as_tokens():
    tokens = learn(corpus(scenes=300), 600)
    assert b"EXIT" not in tokens
    assert b" red" in tokens


def test_training_sequences_are_the_runtimes_prompts(vocabulary):
    codec = Codec(vocabulary)
    composer = Composer(codec, IMAGE_TOKENS)
    family = family_of(codec.special["<|endoftext|>"], image_tokens=IMAGE_TOKENS)
    prompts = PromptBuilder(family, Tokenizer(vocabulary, family.special_tokens))
    picture = render(sample_scene(1))
    for seed in range(12):
        for dialogue in dialogues(seed):
            sequence = composer.chat([dialogue], 1)
            message = [{"image": picture}, *items(dialogue.turns[0].question)]
            parts = parse_message(message, [], lambda source, name: load_picture(source, name=name))
            prompt = prompts.chat(parts, system=family.default_system, window=6144).ids.tolist()
            assert sequence.ids[: len(prompt)] == prompt
            answered = next(i for i, weight in enumerate(sequence.weights) if weight)
            assert answered == len(prompt)


def test_packed_dialogues_do_not_see_each_other(vocabulary):
    codec = Codec(vocabulary)
    composer = Composer(codec, IMAGE_TOKENS)
    model = new_model(codec.ranks, seed=1)
    asked = dialogues(2)
    features = torch.randn(1, IMAGE_TOKENS, model.config.hidden_size)
    with torch.no_grad():
        for block in model.transformer.h:  # zero at the start of training, when nothing could leak
            torch.nn.init.normal_(block.attn.c_proj.weight, std=0.1)
        packed = composer.chat(asked, 1)
        alone = [composer.chat([dialogue], 1) for dialogue in asked]
        one = answer_loss(model, collate([packed], composer), features).answers
        each = [(answer_loss(model, collate([s], composer), features).answers, sum(s.weights)) for s in alone]
    expected = sum(loss * weight for loss, weight in each) / sum(weight for _, weight in each)
    assert float(one) == pytest.approx(float(expected), abs=1e-4)


def pair(seed):
    """A scene, its changed copy, and the change; the first of a run of seeds in which something changed."""
    for number in range(seed, seed + 20):
        scene = sample_scene(number, (2, 3), 0.0)
        changed, change = change_scene(scene, number)
        if change.what != "none":
            return [scene, changed], change
    raise AssertionError("nothing changed in twenty scenes")


def guided(vocabulary, scenes, change, seed=0):
    codec = Codec(vocabulary)
    composer = Composer(codec, IMAGE_TOKENS)
    sequence = composer.chat(several_dialogues(random.Random(seed), scenes, change, 6), len(scenes))
    sequence.differences = differences(change)
    return codec, collate([sequence], composer)


def test_patches_are_shown_their_number_and_the_same_place_before(vocabulary):
    scenes, change = pair(10)
    codec, batch = guided(vocabulary, scenes, change)
    guides = {guide.kind: guide for guide in batch.guides}
    seen = batch.ids[0].expand(len(guides[NUMBERS].rows), -1)[guides[NUMBERS].wanted[:, 0]]
    assert [codec.decode([int(token)]).strip() for token in seen] == ["1"] * IMAGE_TOKENS + ["2"] * IMAGE_TOKENS
    assert len(set((guides[PLACES].tokens - guides[PLACES].wanted[:, 0].int().argmax(-1)).tolist())) == 1
    for guide in batch.guides:
        assert not (guide.wanted & ~guide.among).any()
        assert (guide.wanted.int().argmax(-1) <= guide.tokens[:, None]).all()


def test_answers_are_shown_the_words_and_the_patches_of_what_they_speak_of():
    scenes, change = pair(30)
    codec, batch = guided(NANO_VOCABULARY, scenes, change, seed=1)  # its colours and kinds are whole tokens
    guides = {guide.kind: guide for guide in batch.guides}
    names = {
        codec.decode([int(i)]).strip()
        for i in batch.ids[0].expand(len(guides[WORDS].rows), -1)[guides[WORDS].wanted[:, 0]]
    }
    assert names and names <= {*COLOURS, *COLOUR_ZH.values()}
    changed = set(np.flatnonzero(differences(change)))
    second = np.flatnonzero((batch.ids[0] == codec.special["<imgpad>"]) & (batch.segments[0] == 0))[IMAGE_TOKENS:]
    shown = [{int(i) for i in np.flatnonzero(row[0])} for row in guides[PATCHES].wanted]
    assert {int(second[cell]) for cell in changed} in shown


def test_compared_patches_carry_how_they_differ(vocabulary):
    scenes, change = pair(50)
    _, batch = guided(vocabulary, scenes, change)
    rows, tokens, kinds = batch.differences
    assert len(rows) == len(tokens) == IMAGE_TOKENS
    named = ("none", "gone", "added", "colour")[int(kinds.max())]
    assert named == change.what
    assert 0 < int((kinds > 0).sum()) < IMAGE_TOKENS


def test_guided_attention_is_asked_to_grow(vocabulary):
    """One step down the focus loss raises the attention that the wanted tokens get."""
    scenes, change = pair(70)
    codec, batch = guided(vocabulary, scenes, change)
    model = new_model(codec.ranks, seed=2)
    features = torch.randn(2, IMAGE_TOKENS, model.config.hidden_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = answer_loss(model, batch, features).focus
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = answer_loss(model, batch, features).focus
    assert float(after) < float(before.detach())
