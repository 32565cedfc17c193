"""`qwenvl info` and `qwenvl list`: what bundles hold, from their bundle.json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.errors import BundleError, QwenVLError
from qwenvl_edge.machine.terminal import printable, say

if TYPE_CHECKING:
    from qwenvl_edge.bundle.bundle import Bundle

_DEEPEST = 4  # folders below the one that is listed
_COLUMNS = ("path", "family", "decoder", "vision", "size_gb", "max_context")


def add_info(commands: Any) -> None:
    """Add both commands to the program's parser."""
    parser = commands.add_parser("info", help="say what a bundle holds")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_info)
    parser = commands.add_parser("list", help="list the bundles in a folder")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="looked through, four levels deep (default: the current one)",
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON, one a line")
    parser.set_defaults(run=_list)


def _info(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.bundle.bundle import Bundle

    facts = describe(Bundle.open(arguments.bundle))
    if arguments.json:
        say(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        say("\n".join(f"{name.replace('_', ' '):<18}{_shown(value)}" for name, value in facts.items()))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.bundle.bundle import Bundle

    if not arguments.folder.is_dir():
        raise QwenVLError(f'there is no folder "{arguments.folder}".')
    rows: list[dict[str, Any]] = []
    for path in _bundles(arguments.folder):
        try:
            rows.append(describe(Bundle.open(path)))
        except BundleError as error:
            rows.append({"path": str(path), "error": str(error)})
    if arguments.json:
        for row in rows:
            say(json.dumps(row, ensure_ascii=False))
        return 0
    if not rows:
        say(f"there is no bundle in {arguments.folder}; `qwenvl export CHECKPOINT BUNDLE` makes one")
        return 0
    say(_table([[column.replace("_", " ") for column in _COLUMNS], *map(_row, rows)]))
    return 0


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return the facts of a bundle that its owner asks for, as JSON can hold them."""
    from qwenvl_edge.bundle.engines import plan_targets
    from qwenvl_edge.families import open_family

    manifest = bundle.manifest
    model, precision, generation = manifest.model, manifest.precision, manifest.generation
    family = open_family(manifest)
    blocks = f" in blocks of {precision.block_size}" if precision.block_size else ""
    sampling = (
        f"temperature {generation.temperature:g}, top-p {generation.top_p:g}, top-k {generation.top_k}"
        if generation.do_sample
        else "greedy"
    )
    return {
        "path": str(bundle.path),
        "family": manifest.family.name,
        "chats": family.can_chat(generation.chat_format),
        "decoder": precision.decoder + blocks,
        "vision": precision.vision,
        "head": precision.lm_head,
        "quantized_by": precision.method,
        "layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "vocabulary": model.vocab_size,
        "max_context": model.max_position_embeddings,
        "picture_tokens": family.largest_layout().tokens,
        "sampling": sampling,
        "max_new_tokens": generation.max_new_tokens,
        "dialects": list(manifest.graphs.decoder),
        "tensorrt_plans": list(plan_targets(bundle.path)),
        "size_gb": round(sum(file.size for file in manifest.files.values()) / 1e9, 3),
        "exported_by": manifest.provenance.exporter,
        "checkpoint_sha256": manifest.provenance.checkpoint_sha256,
    }


def _bundles(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the bundles in a folder and below, in the order of their names; folders that may not be read are left."""
    from qwenvl_edge.bundle.manifest import MANIFEST_NAME

    if (folder / MANIFEST_NAME).is_file():
        yield folder
        return
    if depth == _DEEPEST:
        return
    try:
        inside = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return
    for each in inside:
        yield from _bundles(each, depth + 1)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return printable(f"{value:,}" if isinstance(value, int) else str(value) or "-")


def _row(facts: dict[str, Any]) -> list[str]:
    path = printable(facts["path"])
    if "error" in facts:
        return [path, printable(facts["error"])]
    return [path, *(_shown(facts[column]) for column in _COLUMNS[1:])]


def _table(rows: list[list[str]]) -> str:
    """Return columns as wide as their widest whole row; a row of two cells is a remark."""
    whole = [row for row in rows if len(row) == len(_COLUMNS)]
    widths = [max(len(row[0]) for row in rows), *(max(len(row[i]) for row in whole) for i in range(1, len(_COLUMNS)))]
    padded = ([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)
