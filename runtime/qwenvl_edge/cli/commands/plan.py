"""`qwenvl plan`: say how much memory a bundle takes, and whether a board has it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qwenvl_edge.machine.terminal import say


def add_plan(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("plan", help="say how much memory a bundle takes, by part")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest conversation in tokens")
    parser.add_argument("--max-batch", type=int, default=1, metavar="B", help="conversations at once")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="the most pixels of a picture; else the bundle's")
    parser.add_argument("--target", metavar="BOARD", help='say whether it fits there; "all" compares all known boards')
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.backends.memory_estimate import estimate_memory
    from qwenvl_edge.bundle.bundle import Bundle
    from qwenvl_edge.cli.boards import BOARDS, find_board, plan_for, table
    from qwenvl_edge.families.pieces import PixelLimits
    from qwenvl_edge.inputs.options import check, whole

    bundle = Bundle.open(arguments.bundle)
    most = bundle.manifest.model.max_position_embeddings
    wanted = most if arguments.max_context is None else arguments.max_context
    limits: dict[str, Any] = {
        "max_context": check("--max-context", wanted, whole(least=1, most=most)),
        "max_batch": check("--max-batch", arguments.max_batch, whole("a whole number of at least 1", least=1)),
        "limits": PixelLimits(max_pixels=arguments.max_pixels),
    }
    if arguments.target is None:
        say(estimate_memory(bundle, **limits).table())
        return 0
    if arguments.target == "all":
        say(table([plan_for(bundle, board, **limits) for board in BOARDS.values()]))
        return 0
    fit = plan_for(bundle, find_board(arguments.target), **limits)
    say(fit.plan.table())
    say(fit.describe())
    return 0 if fit.fits else 1
