"""Common parts of both training stages: schedule, progress, log, and checkpoints to resume from."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenvl_edge.families.base import Preprocessing
from qwenvl_edge.families.qwen_vl import MEAN, STD

Optimizers = list[torch.optim.Optimizer]
PREPROCESSING = Preprocessing(112, MEAN, STD)


def normalise(pictures: np.ndarray) -> Tensor:
    """[N, S, S, 3] uint8 -> pixel_values [N, 3, S, S]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).float() / 255
    return ((x - torch.tensor(PREPROCESSING.mean)) / torch.tensor(PREPROCESSING.std)).permute(0, 3, 1, 2).contiguous()


@contextmanager
def mixed_precision() -> Iterator[None]:
    """Matrix products in bfloat16 where the CPU multiplies it (AVX-512 BF16); attention stays in fp32, where it is
    faster for heads this small. On other CPUs everything stays in fp32.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        yield
        return
    attention = F.scaled_dot_product_attention

    def in_fp32(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), *rest, **options)

    F.scaled_dot_product_attention = in_fp32
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    finally:
        F.scaled_dot_product_attention = attention


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Products, attention among them, in bfloat16 where the CPU multiplies it; a model keeps float32 where it says."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        yield


class _Stop:
    """Request to end a training between two steps: by Ctrl-C, a termination, or at a time."""

    asked = False
    at = math.inf

    @classmethod
    def ask(cls, *_: object) -> None:
        """Ask for the end."""
        cls.asked = True

    @classmethod
    def now(cls) -> bool:
        """Tell if the end was asked for, or its time has come."""
        return cls.asked or time.time() >= cls.at


def stop_at(clock: str | None) -> None:
    """End trainings cleanly at SIGINT and SIGTERM, and at the next HH:MM of UTC; the checkpoint is written first.

    Raises:
        SystemExit: `clock` is no time of a day.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _Stop.ask)
    if clock is None:
        return
    try:
        wanted = datetime.strptime(clock, "%H:%M")
    except ValueError:
        raise SystemExit(f"--until is {clock!r}; give a time such as 17:30.") from None
    now = datetime.now(timezone.utc)
    at = now.replace(hour=wanted.hour, minute=wanted.minute, second=0, microsecond=0)
    _Stop.at = (at if at > now else at + timedelta(days=1)).timestamp()


def rate(step: int, steps: int, decay: float, warmup: int = 50) -> float:
    """Learning-rate factor: linear warm-up, constant, and a linear decay to zero over the last `decay` of the steps."""
    return min(step / warmup, 1.0, max(steps - step, 0) / (decay * steps))


class Loop:
    """Counts steps, writes a line of JSON every `every` steps and a checkpoint every two minutes."""

    def __init__(
        self,
        name: str,
        folder: Path,
        module: nn.Module,
        opts: Optimizers,
        steps: int,
        decay: float = 0.25,
        every: int = 25,
    ):
        self.name, self.module, self.opts, self.steps, self.every = name, module, opts, steps, every
        self.decay = decay
        self.base = [[group["lr"] for group in opt.param_groups] for opt in opts]
        self.path, self.log = folder / f"{name}.pt", folder / f"{name}.jsonl"
        self.step, self.seconds = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step, self.seconds = state["step"], state["seconds"]
            module.load_state_dict(state["module"])
            for opt, saved in zip(opts, state["optimizers"], strict=True):
                opt.load_state_dict(saved)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        partial = self.path.with_suffix(".partial")
        optimizers = [opt.state_dict() for opt in self.opts]
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "module": self.module.state_dict(),
            "optimizers": optimizers,
        }
        torch.save(state, partial)
        partial.rename(self.path)

    def run(
        self,
        loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
        precision: Callable[[], AbstractContextManager[None]] = mixed_precision,
    ) -> None:
        """Call `loss_of(step)` until the steps are done; it returns the loss and figures to log.

        Raises:
            SystemExit: the end was asked for (stop_at); the checkpoint is written.
        """
        saved, started = time.time(), time.time() - self.seconds
        sums: dict[str, tuple[float, int]] = {}
        while self.step < self.steps:
            with precision():
                loss, figures = loss_of(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 2.0)
            for opt, base in zip(self.opts, self.base, strict=True):
                for group, lr in zip(opt.param_groups, base, strict=True):
                    group["lr"] = lr * rate(self.step + 1, self.steps, self.decay)
                opt.step()
                opt.zero_grad(set_to_none=True)
            self.step += 1
            for key, value in {"loss": loss.item(), **figures}.items():
                total, seen = sums.get(key, (0.0, 0))
                sums[key] = (total + value, seen + 1)
            self.seconds = time.time() - started
            if self.step % self.every == 0 or self.step == self.steps:
                self._report({k: total / seen for k, (total, seen) in sums.items()})
                sums = {}
            if time.time() - saved > 120 or self.step == self.steps or _Stop.now():
                self.save()
                saved = time.time()
            if _Stop.now():
                raise SystemExit(f"{self.name} stopped at step {self.step} of {self.steps}; the same command goes on.")

    def _report(self, figures: dict[str, float]) -> None:
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
        line |= {k: round(v, 4) for k, v in figures.items()}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done = self.step / self.steps
        bar = "#" * math.floor(done * 30)
        left = self.seconds / done * (1 - done)
        print(
            f"\r{self.name} [{bar:<30}] {self.step}/{self.steps} loss {figures['loss']:.3f}, {left / 60:.0f} min left ",
            end="\n" if self.step == self.steps else "",
            file=sys.stderr,
            flush=True,
        )


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless passes over 0..count-1, each in its own order."""
    epoch = 0
    while True:
        yield from np.random.default_rng((seed, epoch)).permutation(count)
        epoch += 1
