"""tools/nano/talk: its list of questions, scenes, conversations, sequences, network and training."""

import json
import random
import re

import numpy as np
import pytest
import torch

from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.inputs.prompt import PromptBuilder, Turn, parse_message
from support.paths import ROOT
from support.talk import narrow, write_sprites
from tools.nano.talk.batches import collate, grid_of
from tools.nano.talk.chatting import SINGLE, Conversation, converse
from tools.nano.talk.colours import dominant, shade_of, tinted
from tools.nano.talk.dense import NOTHING, SIGN, covered, targets
from tools.nano.talk.drawing import render
from tools.nano.talk.forms import TagForm
from tools.nano.talk.icons import KEPT_OUT, SETS
from tools.nano.talk.kinds import COLOURS, KINDS, NAMES
from tools.nano.talk.packing import Packed
from tools.nano.talk.pictures import SORTS, Pictures, render_chunks
from tools.nano.talk.questions import Asker, wordings
from tools.nano.talk.scenes import TRAINED_STYLES, Stock, change_scene, sample_scene, sample_signs
from tools.nano.talk.settings import FAMILIES, create, new_model, open_folder
from tools.nano.talk.train import Sampler, answer_loss, train_talk, train_vision

PLACEHOLDER = re.compile(r"\{(\w+)\}")


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("sprites"))


@pytest.fixture(scope="module", params=FAMILIES)
def work(request, tmp_path_factory, sprites):
    folder = tmp_path_factory.mktemp("talk")
    create(folder / "model", Stock(sprites), request.param, scenes=60, ranks=700)
    return folder


@pytest.fixture(scope="module")
def stock(sprites):
    return Stock(sprites)


@pytest.fixture(scope="module")
def opened(work):
    model, composer = open_folder(work / "model")
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(
                ("o_proj.weight", "down_proj.weight", "linear_fc2.weight", "c_proj.weight")
            ):  # some of these begin at zero
                torch.nn.init.normal_(parameter, std=0.03)
            if "norm" in name:
                torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
    return model.eval(), composer


def talks(stock, seed, count=4, **options):
    scene = sample_scene(stock, seed, (2, 4), 1.0)
    rng = random.Random(seed)
    return scene, [converse(rng, [scene], **options) for _ in range(count)]


def test_the_list_of_questions_is_long_and_in_both_languages():
    listed = wordings()
    assert {task for task, _ in listed} == {task for task, lang in listed if lang == "zh"}
    trained = [text for each, _ in listed.values() for text in each]
    kept = [text for _, each in listed.values() for text in each]
    assert len(trained) >= 150 and len(kept) >= 30
    assert not set(trained) & set(kept)
    for task, language in listed:
        places = {frozenset(PLACEHOLDER.findall(text)) for each in listed[task, language] for text in each}
        assert len(places) == 1 or task == "unknown", task


def test_wordings_kept_out_are_asked_only_when_wanted():
    for (task, language), (trained, kept) in wordings().items():
        words = dict.fromkeys(("it", "a", "b", "n"), "X")
        asked = {Asker(random.Random(i), language)(task, **words) for i in range(40)}
        assert asked <= {text.format(**words) for text in trained}
        if kept:
            new = {Asker(random.Random(i), language, new=True)(task, **words) for i in range(20)}
            assert new <= {text.format(**words) for text in kept}


def test_there_are_sixty_kinds_and_one_style_is_kept_out():
    assert len(KINDS) >= 60 and len({kind.chinese for kind in KINDS.values()}) == len(KINDS)
    assert KEPT_OUT in SETS and KEPT_OUT not in TRAINED_STYLES and len(SETS) >= 5
    text = (ROOT / "tools" / "nano" / "talk" / "LICENCES.md").read_text()
    for each in SETS.values():
        assert each.package in text and each.licence in text


def test_colours_are_named_as_people_name_them():
    rng = np.random.default_rng(0)
    shaded = np.dstack([np.linspace(90, 170, 400).reshape(20, 20, 1).repeat(3, 2), np.full((20, 20, 1), 255)])
    for colour in COLOURS:
        for _ in range(8):
            painted = tinted(shaded.astype(np.uint8), shade_of(colour, rng))
            assert dominant(painted) in (colour, None)
    named = [dominant(tinted(shaded.astype(np.uint8), shade_of(c, rng))) for c in COLOURS]
    assert sum(name is not None for name in named) >= 8


@pytest.mark.parametrize("seed", range(8))
def test_a_seed_gives_one_picture_with_everything_in_it(stock, seed):
    scene = sample_scene(stock, seed)
    assert scene == sample_scene(stock, seed) != sample_scene(stock, seed + 1)
    assert np.array_equal(np.asarray(render(scene, stock)), np.asarray(render(scene, stock)))
    for thing in scene.things:
        assert all(0 <= side <= 1 for side in thing.box) and thing.style in TRAINED_STYLES
    without = np.asarray(render(type(scene)(scene.canvas, (), None, scene.background, scene.look), stock))
    assert without.shape == (scene.canvas[1], scene.canvas[0], 3)


def test_things_are_drawn_in_their_boxes(stock):
    """What differs from the empty scene lies in a thing's box or its shadow."""
    scene = sample_scene(stock, 3, (1, 1), 0.0)
    (thing,) = scene.things
    grid = scene.canvas[1] // 32, scene.canvas[0] // 32
    wanted = targets(scene, grid)
    cells = covered(thing.box, grid)
    assert set(np.flatnonzero(wanted.kind.numpy() == NAMES.index(thing.kind))) == set(cells)
    assert (wanted.kind.numpy()[np.setdiff1d(np.arange(grid[0] * grid[1]), cells)] == NOTHING).all()


def test_targets_spell_the_signs():
    scene = sample_signs(4)
    wanted = targets(scene, (7, 7))
    assert (wanted.kind == SIGN).any()
    spelt = {"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[i] for i in np.flatnonzero(wanted.letters.any(0))}
    assert spelt == set("".join(sign.text for sign in scene.signs))


def test_every_question_can_be_asked(stock):
    asked = set()
    for seed in range(100):
        scene = sample_scene(stock, seed, (1, 4), 0.4)
        talk = converse(random.Random(seed), [scene], length=10)
        asked |= {turn.task for turn in talk.turns} if talk else set()
        later, change = change_scene(stock, scene, seed)
        for talk in (
            converse(random.Random(seed), [scene, later], change, length=6),
            converse(random.Random(seed), []),
        ):
            asked |= {turn.task for turn in talk.turns} if talk else set()
    assert asked == {task for task, _ in wordings()}
    assert {"absent"} == set(SINGLE) - asked  # asks as other tasks do


def test_long_conversations_have_many_turns(stock):
    assert max(len(talk.turns) for seed in range(40) for talk in talks(stock, seed, length=10)[1]) == 10


def test_sequences_are_the_runtimes_prompts(stock, opened):
    """Each answer begins where the runtime's prompt with the turns before it ends, with the positions it computes."""
    _, composer = opened
    family = composer.family
    builder = PromptBuilder(family, composer.tokenizer)
    load = lambda source, name: load_picture(source, name=name)  # noqa: E731
    for seed in range(6):
        scene, made = talks(stock, seed, length=3)
        for first in (False, True):
            for each in made:
                talk = Conversation(each.turns, 1, question_first=first)
                done = composer.compose(talk, [family.layout(scene.canvas)])
                turns = []
                for number, turn in enumerate(talk.turns):
                    items = [{"text": turn.question}]
                    if number == 0:
                        items = (
                            [*items, {"image": render(scene, stock)}]
                            if first
                            else [{"image": render(scene, stock)}, *items]
                        )
                    parts = parse_message(items, [], load)
                    prompt = builder.chat(parts, history=turns, system=family.default_system, window=4096)
                    length = len(prompt.ids)
                    assert done.ids[:length] == prompt.ids.tolist()
                    assert done.weights[length] > 0 and done.weights[length - 1] == 0
                    turns.append(Turn(tuple(parts), composer.form.write(turn.answer).text))


def test_answers_are_read_back_as_the_places_they_name(stock, opened):
    _, composer = opened
    for seed in range(20):
        for talk in talks(stock, seed)[1]:
            for turn in talk.turns:
                reader = composer.family.reader()
                reader.feed(composer.form.write(turn.answer).text)
                reader.finish()
                assert len(reader.shapes) == len(turn.truth.get("boxes", ()))
                assert not reader.malformed
                assert TagForm().write(turn.answer).text.count("<box>") == len(reader.shapes)


def test_marks_cover_an_answer(stock, opened):
    _, composer = opened
    for seed in range(10):
        for talk in talks(stock, seed)[1]:
            for form in (composer.form, TagForm()):
                for turn in talk.turns:
                    written = form.write(turn.answer)
                    assert "".join(written.text[m.start : m.end] for m in written.marks) == written.text


def test_the_network_computes_what_transformers_does(opened):
    from transformers import Qwen3VLConfig
    from transformers import Qwen3VLForConditionalGeneration as Published

    model, composer = opened
    if composer.family.name != "qwen3_vl":
        pytest.skip("Qwen-VL is trained with the exporter's own network")
    config = Qwen3VLConfig(**{k: v for k, v in model.config.items() if k != "architectures"})
    published = Published(config).eval()
    missing = published.load_state_dict(model.state_dict(), strict=True)
    assert not missing.missing_keys
    pictures = np.random.default_rng(0).integers(0, 256, (1, 192, 256, 3), dtype=np.uint8)
    layout = composer.family.layout((256, 192))
    frames = composer.family.vision_inputs([pictures[0]], layout)["pixel_values"][0]
    grid = torch.tensor([[1, 12, 16]])
    rng = random.Random(1)
    ids = [rng.randrange(600) for _ in range(8)]
    special = composer.family.special_tokens
    ids = [
        *ids[:3],
        special["<|vision_start|>"],
        *[special["<|image_pad|>"]] * layout.tokens,
        special["<|vision_end|>"],
        *ids[3:],
    ]
    with torch.no_grad():
        features = model.encode(pictures)
        tokens = torch.tensor(ids)
        positions = torch.from_numpy(composer.positions(len(ids), _spans(composer, ids, layout)))
        places = torch.nonzero(tokens == special["<|image_pad|>"])[:, 0]
        states, _, _ = model.decode(tokens, positions, Packed.single(len(ids)), places, features)
        ours = model.lm_head(states)[None]
        theirs = published(
            input_ids=tokens[None],
            pixel_values=torch.from_numpy(np.asarray(frames)),
            image_grid_thw=grid,
            mm_token_type_ids=(tokens == special["<|image_pad|>"])[None].int(),
        ).logits
    assert float(theirs.std()) > 0.01
    torch.testing.assert_close(ours, theirs, atol=2e-4 * float(theirs.abs().max()), rtol=1e-3)


def _spans(composer, ids, layout):
    from qwenvl_edge.families.pieces import Span

    return [Span(ids.index(composer.family.special_tokens["<|image_pad|>"]), layout.tokens, 0, layout)]


def test_packed_conversations_do_not_see_each_other(stock, opened):
    model, composer = opened
    scenes, made = zip(*(talks(stock, seed, count) for seed, count in ((2, 4), (7, 3))), strict=True)
    rows = [
        [composer.compose(talk, [composer.family.layout(scene.canvas)]) for talk in each]
        for scene, each in zip(scenes, made, strict=True)
    ]
    pictures = [np.asarray(render(scene, stock)) for scene in scenes]
    with torch.no_grad():
        together, _, _ = answer_loss(model, collate(rows), model.encode(pictures))
        alone = [
            (answer_loss(model, collate([[one]]), model.encode([picture]))[0], sum(one.weights))
            for row, picture in zip(rows, pictures, strict=True)
            for one in row
        ]
    expected = sum(loss * weight for loss, weight in alone) / sum(weight for _, weight in alone)
    assert float(together) == pytest.approx(float(expected), abs=1e-4)


def test_guides_point_at_the_thing_and_its_name(stock, opened):
    _, composer = opened
    scenes = (sample_scene(stock, i, (3, 3), 0.0) for i in range(50))
    scene = next(scene for scene in scenes if len({thing.kind for thing in scene.things}) == 3)
    layout = composer.family.layout(scene.canvas)
    made = (converse(random.Random(i), [scene], length=1, tasks=["where"]) for i in range(200))
    talk = next(talk for talk in made if talk and talk.turns[0].task == "where" and talk.turns[0].thing)
    batch = collate([[composer.compose(talk, [layout])]])
    guides = {guide.name: guide for guide in batch.guides}
    thing = talk.turns[0].thing
    first = int(batch.pictures[0])
    cells = {first + int(cell) for cell in covered(thing.box, grid_of(layout))}
    for wanted in guides["patches seen"].wanted[0]:
        assert set(np.flatnonzero(wanted)) == cells
    named = composer.tokenizer.decode(batch.ids[np.flatnonzero(guides["words seen"].wanted[0][0])].tolist()).strip()
    assert named == talk.turns[0].names[0]


def test_a_few_conversations_are_learnt_by_heart(work, stock, opened):
    """The pipeline learns on a narrow model: mask, positions, picture rows and loss fit together."""
    _, composer = opened
    model = new_model(narrow(json.loads((work / "model" / "config.json").read_text())))
    sampler = Sampler(Pictures(work, stock), composer)
    scene, made = talks(stock, 5, count=3, length=1)
    layout = sampler.layout(scene)
    batch = collate([[composer.compose(talk, [layout]) for talk in made]])
    picture = np.asarray(render(scene, stock))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(60):
        features = model.encode([picture])
        loss, guided, figures = answer_loss(model, batch, features)
        (loss + 0.1 * guided).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.3 and figures["words"] > 0.9


def test_both_stages_train_and_go_on(work, opened, sprites, monkeypatch, tmp_path):
    _, composer = opened
    monkeypatch.setattr("tools.nano.talk.pictures.SORTS", dict.fromkeys(SORTS, 2))
    (tmp_path / "sprites.npz").symlink_to(sprites)
    render_chunks(tmp_path, 1)
    pictures = Pictures(tmp_path, Stock(sprites))
    pictures.refresh()
    config = narrow(json.loads((work / "model" / "config.json").read_text()))
    for stage in (train_vision, train_talk):
        for steps in (1, 2):
            stage(tmp_path, new_model(config), Sampler(pictures, composer), steps)
        name = stage.__name__.removeprefix("train_")
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2] and all(line["loss"] > 0 for line in lines)


def test_a_missing_chunk_is_named(tmp_path, stock):
    with pytest.raises(SystemExit, match=r"few-224x224-0000\.npy is missing; render it"):
        Pictures(tmp_path, stock).refresh()
    assert set(SORTS) == {"few", "many", "pairs", "signs"}


def test_the_checkpoint_is_small_and_in_the_published_layout(work):
    assert (work / "model" / "model.safetensors").stat().st_size < 25_000_000
    config = json.loads((work / "model" / "config.json").read_text())
    assert config["model_type"] in ("qwen3_vl", "qwen")
