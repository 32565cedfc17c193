"""tools/nano/talk/noticing.py: what the tokens of a second picture are asked."""

import numpy as np
import pytest
import torch

from support.talk import write_sprites
from tools.nano.talk.dense import NOTHING, covered, targets
from tools.nano.talk.noticing import Notice, Noticer, notice
from tools.nano.talk.scenes import Stock, change_scene, sample_scene


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return Stock(write_sprites(tmp_path_factory.mktemp("sprites")))


def test_second_pictures_are_asked_what_stood_there_before(stock):
    """Rows: one picture, then a pair of which a thing is gone, then two pictures without a change."""
    grid, others = (7, 6), (6, 8)
    pair = next(
        (scene, later, change)
        for seed in range(50)
        for scene in [sample_scene(stock, seed, (2, 3), 0.0)]
        for later, change in [change_scene(stock, scene, seed)]
        if change.what == "gone"
    )
    scene, later, change = pair
    shown = [([scene], None), ([scene, later], change), ([scene, scene], None)]
    grids = [others, grid, grid, others, others]
    places = torch.arange(1000, 1000 + 3 * 48 + 2 * 42)
    (found,) = notice(Noticer(16), shown, grids, places)
    assert found.tokens.tolist() == list(range(1000 + 48 + 42, 1000 + 48 + 84))
    assert set(np.flatnonzero(found.changed)) == set(covered(change.before.box, grid))
    assert torch.equal(found.kind, targets(scene, grid).kind)
    assert not notice(Noticer(16), [shown[0], shown[2]], [others] * 3, places)


def test_a_noticer_learns_from_the_states_before_its_layer():
    torch.manual_seed(0)
    noticer, kind = Noticer(16), torch.tensor([0, 1, NOTHING, NOTHING])
    found = Notice(
        noticer, torch.tensor([3, 2, 1, 0]), kind, torch.tensor([0, 1, -100, -100]), torch.tensor([1, 0, 0, 0])
    )
    optimizer, states = torch.optim.AdamW(noticer.parameters(), lr=0.1), torch.randn(5, 16)
    losses = []
    for _ in range(60):
        losses.append(found.loss(torch.empty(0), torch.empty(0), states))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.05 * losses[0]
    assert found.loss(torch.empty(0), torch.empty(0), states.flip(0)) > 10 * losses[-1]
