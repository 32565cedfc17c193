"""tools/nano/team.py: two processes that share a step end with the weights of one that did all of it."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tools.nano.loop import Loop
from tools.nano.model import optimizers
from tools.nano.team import Team

STEPS = 4
EXAMPLES = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))


def network(seed):
    torch.manual_seed(seed)
    return nn.ModuleDict({"first": nn.Linear(24, 48), "second": nn.Linear(48, 24), "unused": nn.Linear(24, 24)})


def train(folder, team, seed, steps=STEPS):
    """Learn a map of the examples, each process its share; one layer gets no gradient."""
    module = network(seed)
    loop = Loop("team", folder, module, optimizers([module], 0.01, 0.01, team), steps, every=1, team=team)
    mine = EXAMPLES[team.rank :: team.size]

    def loss_of(step):
        found = module["second"](module["first"](mine).relu())
        return (found - mine.roll(step + 1, 1)).square().mean(), {}

    loop.run(loss_of)
    return module.state_dict()


def work(rank, folder, results):
    """One of two processes: four steps with a stop in the middle."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    team = Team()
    for steps in (2, STEPS):  # taken up again in the middle
        state = train(Path(folder), team, seed=rank, steps=steps)
    torch.save(state, f"{results}-{rank}.pt")
    asked = team.average(list(network(0).parameters()), rank == 1, False)
    assert asked == [True, False]
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    """Their starts differ, so the first one's weights count; a layer that nobody used stays as it was."""
    (tmp_path / "two").mkdir()
    mp.spawn(work, (str(tmp_path / "two"), str(tmp_path / "found")), nprocs=2)
    (tmp_path / "one").mkdir()
    for steps in (2, STEPS):
        alone = train(tmp_path / "one", Team(), seed=0, steps=steps)
    first, second = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in alone.items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=2e-2, atol=2e-4)  # Muon turns in bfloat16
    assert alone["unused.weight"].equal(network(0)["unused"].weight)


def test_another_number_of_processes_begins_with_new_optimizers(tmp_path, capsys):
    train(tmp_path, Team(), seed=0)
    saved = torch.load(tmp_path / "team.pt", weights_only=True)
    torch.save(saved | {"processes": 2}, tmp_path / "team.pt")
    module = network(1)
    loop = Loop("team", tmp_path, module, optimizers([module], 0.01, 0.01), 9)
    assert loop.step == STEPS and "the optimizers begin anew" in capsys.readouterr().out
    assert module["first"].weight.equal(saved["module"]["first.weight"])
    assert not any(opt.state for opt in loop.opts)


def test_matrices_are_divided_by_what_they_take():
    team = Team()
    team.size = 2
    matrices = [torch.empty(size) for size in ((768, 768), (192, 192), (192, 768), (768, 192), (700, 700))]
    assert team.owners(matrices) == [0, 1, 1, 1, 1]
    assert team.own(matrices) == [matrices[0]] and team.part(3) == 2
