"""Training in several processes, each with its part of every step: `torchrun --nproc-per-node 2 -m MODULE ...`.

Gradients are averaged; of the matrices that Muon turns, which takes a fifth of a small model's step, every process
turns its own and gives them to the others. Without torchrun there is one process, and all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Team:
    """The processes of a training, `size` of them; this one is number `rank`."""

    def __init__(self) -> None:
        self.rank, self.size = (int(os.environ.get(name, alone)) for name, alone in (("RANK", 0), ("WORLD_SIZE", 1)))
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")

    def part(self, count: int) -> int:
        """This process's part of `count`, rounded up."""
        return -(-count // self.size)

    def wait(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, module: nn.Module) -> None:
        """Give everyone the first process's parameters."""
        if self.size > 1:
            for parameter in module.parameters():
                dist.broadcast(parameter.data, 0)

    def average(self, parameters: Sequence[nn.Parameter], *asked: bool) -> list[bool]:
        """Replace gradients by their mean over the team, and tell of each `asked` if any process asks it.

        A gradient that only some have counts as zero with the others; one that nobody has stays None.
        """
        if self.size == 1:
            return list(asked)
        there = [parameter.grad is not None for parameter in parameters]
        flat = torch.cat([_gradient(parameter) for parameter in parameters] + [torch.tensor([*there, *asked]).float()])
        dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in parameters]
        *gradients, flags = flat.split([*sizes, len(there) + len(asked)])
        for parameter, gradient, found in zip(parameters, gradients, flags[: len(there)] > 0, strict=True):
            parameter.grad = gradient.view_as(parameter) / self.size if found else None
        return [bool(flag) for flag in flags[len(there) :] > 0]

    def owners(self, matrices: Sequence[Tensor]) -> list[int]:
        """The process that turns each matrix; all have about as much to do. [m, n] with m <= n takes m * m * n."""
        work = [min(m.shape) ** 2 * max(m.shape) for m in matrices]
        owners, loads = [0] * len(work), [0] * self.size
        for number in sorted(range(len(work)), key=lambda i: (-work[i], i)):
            owners[number] = loads.index(min(loads))
            loads[owners[number]] += work[number]
        return owners

    def exchange(self, matrices: Sequence[Tensor]) -> None:
        """Give everyone what each process has turned."""
        if self.size == 1:
            return
        owners = self.owners(matrices)
        for rank in range(self.size):
            mine = [each.data for each, owner in zip(matrices, owners, strict=True) if owner == rank]
            flat = torch.cat([each.flatten() for each in mine])
            dist.broadcast(flat, rank)
            for each, new in zip(mine, flat.split([m.numel() for m in mine]), strict=True):
                each.copy_(new.view_as(each))

    def own(self, matrices: Iterable[Tensor]) -> list[Tensor]:
        """The matrices that this process turns."""
        every = list(matrices)
        return [each for each, owner in zip(every, self.owners(every), strict=True) if owner == self.rank]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten()
