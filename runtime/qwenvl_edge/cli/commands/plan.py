"""`qwenvl plan`: say how much memory a bundle takes, and whether a board has it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.machine.terminal import say

if TYPE_CHECKING:
    from qwenvl_edge.backends.memory_estimate import MemoryEstimate
    from qwenvl_edge.cli.boards import Fit


def add_plan(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("plan", help="say how much memory a bundle takes, by part")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument(
        "--max-context", type=int, metavar="N", help="longest conversation in tokens (default: the model's)"
    )
    parser.add_argument("--max-batch", type=int, default=1, metavar="B", help="conversations at once (default 1)")
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="the most pixels of a picture (default: the bundle's)"
    )
    parser.add_argument(
        "--target",
        metavar="T",
        help='say whether it fits that machine; "all" compares all that are known (default: memory alone)',
    )
    parser.add_argument("--json", action="store_true", help="print bytes, and for machines the verdict, as JSON")
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
        estimate = estimate_memory(bundle, **limits)
        say(json.dumps(_bytes(estimate)) if arguments.json else estimate.table())
        return 0
    every = arguments.target == "all"
    fits = [
        plan_for(bundle, board, **limits) for board in (BOARDS.values() if every else [find_board(arguments.target)])
    ]
    if arguments.json:
        found = [_verdict(fit) for fit in fits]
        say(json.dumps(found if every else found[0]))
    elif every:
        say(table(fits))
    else:
        say(fits[0].plan.table())
        say(fits[0].describe())
    return 0 if every or fits[0].fits else 1


def _bytes(estimate: MemoryEstimate) -> dict[str, int]:
    return {**asdict(estimate), "total": estimate.total}


def _verdict(fit: Fit) -> dict[str, Any]:
    return {
        "target": fit.board.name,
        "fits": fit.fits,
        "spare": fit.spare_bytes,
        "most_tokens_per_s": round(fit.tokens_per_s, 1),
        "bytes": _bytes(fit.plan),
    }
