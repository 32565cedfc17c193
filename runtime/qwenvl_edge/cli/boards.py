"""Machines that bundles run on by name, and the check whether a bundle fits one that is not at hand.

Memory and bandwidth are the makers' figures: NVIDIA's data sheets of modules (Jetson Orin Nano in the "Super" mode of
JetPack 6.2 and newer) and of GPUs, Raspberry Pi's product brief. Compute capabilities are those of NVIDIA's list of
CUDA GPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_edge.bundle.contract import DECODER_DATA
from qwenvl_edge.cli.export_package import import_export
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits
from qwenvl_edge.machine.urls import shown

if TYPE_CHECKING:
    from qwenvl_edge.backends.memory_estimate import MemoryEstimate
    from qwenvl_edge.bundle.bundle import Bundle

_GIB = 1 << 30
# An 8 GB Jetson Orin shows 7,620 MiB and an L4 of 24 GB 23,034 MiB: firmware, carve-outs and ECC take the rest.
_VISIBLE = 0.93
_SYSTEM_BYTES = 1 * _GIB  # Linux without a desktop
_CUDA_BYTES = 700 << 20  # allowance for CUDA's context with TensorRT's libraries


@dataclass(frozen=True)
class Board:
    """A machine by its published figures.

    Attributes:
        name: what `--target` calls it.
        product: what its maker calls it.
        memory_gib: memory that the model has to fit into.
        bandwidth_gb_s: of that memory.
        compute_capability: 10 * major + minor of its GPU; None where the CPU computes.
        unified: whether CPU and GPU, and so the system, share that memory.
    """

    name: str
    product: str
    memory_gib: int
    bandwidth_gb_s: float
    compute_capability: int | None
    unified: bool

    @property
    def free_bytes(self) -> int:
        """Estimate of what a program may take: visible memory, less the system where it shares that."""
        return int(self.memory_gib * _GIB * _VISIBLE) - (_SYSTEM_BYTES if self.unified else 0)


BOARDS = {
    board.name: board
    for board in (
        Board("raspberry-pi-5-8gb", "Raspberry Pi 5", 8, 17.1, None, True),
        Board("raspberry-pi-5-16gb", "Raspberry Pi 5", 16, 17.1, None, True),
        Board("laptop-16gb", "Laptop with DDR4-3200", 16, 51.2, None, True),
        Board("orin-nano-4gb", "Jetson Orin Nano 4GB", 4, 51, 87, True),
        Board("orin-nano-8gb", "Jetson Orin Nano 8GB", 8, 102, 87, True),
        Board("orin-nx-8gb", "Jetson Orin NX 8GB", 8, 102.4, 87, True),
        Board("orin-nx-16gb", "Jetson Orin NX 16GB", 16, 102.4, 87, True),
        Board("agx-orin-32gb", "Jetson AGX Orin 32GB", 32, 204.8, 87, True),
        Board("agx-orin-64gb", "Jetson AGX Orin 64GB", 64, 204.8, 87, True),
        Board("thor-t4000", "Jetson T4000", 64, 273, 110, True),
        Board("thor-t5000", "Jetson T5000 (AGX Thor)", 128, 273, 110, True),
        Board("dgx-spark", "DGX Spark (GB10)", 128, 273, 121, True),
        Board("l4", "L4", 24, 300, 89, False),
        Board("a10", "A10", 24, 600, 86, False),
        Board("rtx-4090", "GeForce RTX 4090", 24, 1008, 89, False),
        Board("a100-80gb", "A100 80GB SXM", 80, 2039, 80, False),
        Board("h100-80gb", "H100 SXM", 80, 3350, 90, False),
        Board("h200", "H200 SXM", 141, 4800, 90, False),
    )
}


@dataclass(frozen=True)
class Fit:
    """A memory plan against a board. token_bytes: weights and cache that decoding one token reads at the most."""

    board: Board
    plan: MemoryEstimate
    token_bytes: int

    @property
    def spare_bytes(self) -> int:
        """Memory that stays free; negative if the bundle does not fit."""
        return self.board.free_bytes - self.plan.total

    @property
    def fits(self) -> bool:
        """True if the plan fits into the memory that the board is expected to have free."""
        return self.spare_bytes >= 0

    @property
    def tokens_per_s(self) -> float:
        """Upper bound of one conversation's decoding with a full context: memory bandwidth over bytes read."""
        return self.board.bandwidth_gb_s * 1e9 / self.token_bytes

    def describe(self) -> str:
        """Return the board and the verdict, for a terminal."""
        board = self.board
        gpu = "CPU" if board.compute_capability is None else f"compute capability {board.compute_capability / 10:.1f}"
        spare = self.spare_bytes / 1e6
        verdict = (
            f"it fits, with {spare:,.0f} MB to spare"
            if self.fits
            else f"it does not fit: {-spare:,.0f} MB too much; plan a smaller --max-context, or export smaller"
        )
        return "\n".join(
            (
                f"{board.product}: {board.memory_gib} GB, {board.bandwidth_gb_s:g} GB/s, {gpu}",
                f"about {board.free_bytes / 1e6:,.0f} MB free for a program: {verdict}",
                f"each token reads up to {self.token_bytes / 1e6:,.0f} MB of memory, which allows at most "
                f"{self.tokens_per_s:,.0f} tokens/s",
            )
        )


def find_board(name: str) -> Board:
    """Return the board that `--target` names.

    Raises:
        QwenVLError: it is unknown; lists those that are known.
    """
    if name not in BOARDS:
        raise QwenVLError(f'the target "{shown(name)}" is unknown; there are {", ".join(BOARDS)}.')
    return BOARDS[name]


def kind_of(target: str) -> str:
    """Return "cpu" or "gpu", which an export is for, of a machine or of a GPU as `qwenvl build` names it.

    Raises:
        QwenVLError: it is neither.
    """
    if target in ("cpu", "gpu"):
        return target
    if target in BOARDS:
        return "cpu" if BOARDS[target].compute_capability is None else "gpu"
    if _is_gpu(target):
        return "gpu"
    raise QwenVLError(
        f'the target "{shown(target)}" is unknown; say cpu or gpu, name a machine ({", ".join(BOARDS)}), or a GPU such '
        "as sm_86 or orin."
    )


def gpu_of(target: str) -> str:
    """Return the GPU that plans for a machine are built for; other words as they are.

    Raises:
        QwenVLError: the machine has none.
    """
    if target not in BOARDS or _is_gpu(target):
        return target
    board = BOARDS[target]
    if board.compute_capability is None:
        raise QwenVLError(f"{target} has no GPU that TensorRT builds for; its CPU runs the bundle without a plan.")
    return f"sm_{board.compute_capability}"


def _is_gpu(target: str) -> bool:
    targets = import_export("tensorrt.targets", extra="tensorrt")
    return target.lower() in {*targets.NAMES, *(f"sm_{number}" for number in targets.CAPABILITIES)}


def plan_for(
    bundle: Bundle,
    board: Board,
    *,
    max_context: int,
    max_batch: int = 1,
    limits: PixelLimits = NO_LIMITS,
    weights: int | None = None,
) -> Fit:
    """Plan a bundle's memory on a board; its errors are those of estimate_memory.

    On a GPU weights lie in memory as they do in the bundle, attention over a picture keeps no scores, as in TensorRT,
    and CUDA's own share is added. weights: their bytes on the board's CPU; None: on this machine's.
    """
    from qwenvl_edge.backends.memory_estimate import estimate_memory, gpu_weight_bytes
    from qwenvl_edge.bundle.manifest import FLOAT_CACHE

    # On a GPU the cache has the bundle's type, as in a plan with the plugin; on a CPU it is float.
    kv_cache = FLOAT_CACHE if board.compute_capability is None else bundle.manifest.precision.kv_cache
    on_gpu = board.compute_capability is not None
    given = gpu_weight_bytes(bundle) if on_gpu else weights
    sizes = {"max_context": max_context, "max_batch": max_batch}
    plan = estimate_memory(bundle, **sizes, kv_cache=kv_cache, limits=limits, weights=given, picture_scores=not on_gpu)
    if on_gpu:
        plan = dataclasses.replace(plan, process=plan.process + _CUDA_BYTES)
    cache = plan.cache // (max_batch + 1 if max_batch > 1 else 1)
    return Fit(board, plan, bundle.manifest.files[DECODER_DATA].size + cache)


def table(fits: Sequence[Fit]) -> str:
    """Return one line per board, for a terminal."""
    lines = [f"{'target':<22}{'memory':>8}{'GB/s':>8}{'plan':>12}{'spare':>12}{'tokens/s <=':>13}"]
    for fit in fits:
        spare = f"{fit.spare_bytes / 1e6:,.0f} MB" if fit.fits else "too big"
        lines.append(
            f"{fit.board.name:<22}{fit.board.memory_gib:>5} GB{fit.board.bandwidth_gb_s:>8g}"
            f"{fit.plan.total / 1e6:>9,.0f} MB{spare:>12}{fit.tokens_per_s:>13,.0f}"
        )
    return "\n".join(lines)
