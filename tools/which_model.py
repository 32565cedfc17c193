"""Fills the tables of docs/which-model.md: `python -m tools.which_model`.

Sizes follow from a model's configuration and a bundle's precision alone, so no weights are needed: the layouts of both
data files give the disk, and `qwenvl plan`'s own estimate gives memory and boards. What was measured comes from
benchmarks/results.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from qwenvl_edge.backends.onnxruntime.session import weight_bytes
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import (
    DECODER_DATA,
    DECODER_GRAPHS,
    EMBEDDING_FILE,
    NATIVE,
    VISION_DATA,
    VISION_GRAPH,
    VISION_NATIVE_GRAPH,
    VISION_ORT_GRAPH,
)
from qwenvl_edge.bundle.embedding import embedding_bytes
from qwenvl_edge.bundle.engines import TENSORRT
from qwenvl_edge.bundle.files import FileInfo
from qwenvl_edge.bundle.manifest import FORMAT, EmbeddingInfo, Graphs, Manifest, Provenance
from qwenvl_edge.cli.boards import BOARDS, Board, Fit, plan_for
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.families.json_vl import JsonVLFamily
from qwenvl_edge.families.pieces import NO_LIMITS
from qwenvl_edge_export.families.base import ExportFamily
from qwenvl_edge_export.graphs.weight_layout import decoder_layout, vision_layout
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.tensorrt.memory import peak_bytes
from tools import synthetic_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "which-model.md"
BLOCK = re.compile(r"(<!-- computed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CONTEXT = 4096
_ORIN = 87
_JETPACK_6, _LATER = (10, 3), (10, 13)  # releases of TensorRT


class Form(NamedTuple):
    """Precisions of an export; None is what the first one brings along."""

    precision: str
    vision: str | None = None
    head: str | None = None


# What a CPU or a GPU gets, by the target of the export.
SMALL, LARGE = {"cpu": Form("int4"), "gpu": Form("int4")}, {"cpu": Form("int8"), "gpu": Form("fp16")}
INTEGERS, SMALLEST = {"gpu": Form("w8a8")}, {"gpu": Form("int4", vision="w8a8", head="int4")}


class Model(NamedTuple):
    """A published model; licence as docs/checkpoints.md has it."""

    title: str
    preset: str
    licence: str


MODELS = (
    Model("Qwen-VL-Chat", "full", "Tongyi Qianwen (not checked)"),
    Model("Qwen2-VL-2B", "qwen2-vl-2b", "Apache-2.0 (not checked)"),
    Model("Qwen2.5-VL-3B", "qwen2.5-vl-3b", "Qwen research licence"),
    Model("Qwen2.5-VL-7B", "qwen2.5-vl-7b", "Apache-2.0 (not checked)"),
    Model("Qwen3-VL-2B", "qwen3-vl-2b", "Apache-2.0 (not checked)"),
    Model("Qwen3-VL-4B", "qwen3-vl-4b", "Apache-2.0 (not checked)"),
    Model("Qwen3-VL-8B", "qwen3-vl-8b", "Apache-2.0 (not checked)"),
)
SHOWN = {
    "raspberry-pi-5-8gb": "Pi 5, 8 GB",
    "raspberry-pi-5-16gb": "Pi 5, 16 GB",
    "laptop-16gb": "laptop, 16 GB",
    "orin-nano-8gb": "Orin Nano 8 GB",
    "orin-nx-16gb": "Orin NX 16 GB",
    "agx-orin-32gb": "AGX Orin 32 GB",
    "agx-orin-64gb": "AGX Orin 64 GB",
    "thor-t5000": "AGX Thor",
    "h200": "H200",
}


@functools.cache
def family_of(preset: str) -> ExportFamily:
    """The exporter's family of a preset, from its settings alone."""
    with tempfile.TemporaryDirectory() as folder:
        family = synthetic_checkpoint.write_settings(Path(folder) / "settings", preset)
        family.family_info()  # reads what it needs of the folder, and keeps it
        return family


@functools.cache
def planned(preset: str, form: Form, target: str) -> Bundle:
    """A bundle as an export would write it, without its files."""
    family = family_of(preset)
    shapes = {weight.name: weight.shape for weight in family.decoder.linear_weights()}
    chosen = ExportPrecision.choose(form.precision, vision=form.vision, head=form.head, target=target).fitted(shapes)
    decoder = family.decoder
    table = EmbeddingInfo(EMBEDDING_FILE, chosen.embedding, (decoder.vocab_size, decoder.hidden_size))
    sizes = {
        VISION_DATA: vision_layout(family.vision_weights, chosen.vision).size_bytes,
        DECODER_DATA: decoder_layout(decoder, chosen.decoder).size_bytes,
        EMBEDDING_FILE: embedding_bytes(table.dtype, table.shape),
    }
    own = VISION_ORT_GRAPH if chosen.vision.compute == "fp32" else ""
    native = VISION_NATIVE_GRAPH if chosen.has_native_vision else ""
    manifest = Manifest(
        format=FORMAT,
        family=family.family_info(),
        model=family.model_info(),
        precision=chosen.describe("rtn"),
        workspace=family.workspace(vision_ort=bool(own)),
        graphs=Graphs(VISION_GRAPH, {name: DECODER_GRAPHS[name] for name in chosen.decoder.dialects}, own, native),
        embedding=table,
        tokenizer="",
        generation=family.generation_defaults(synthetic_checkpoint.GENERATION),
        files={name: FileInfo(size, "") for name, size in sizes.items()},
        provenance=Provenance("", "", {}),
        parity={},
        sensitivity={},
    )
    return Bundle(Path(preset), manifest)


def disk_bytes(bundle: Bundle) -> int:
    """Bytes of a bundle's weights on the disk."""
    return sum(info.size for info in bundle.manifest.files.values())


def fit(model: Model, forms: dict[str, Form], board: Board) -> Fit:
    """A model's plan on a board, in the precision for its processor; a CPU has the native core's products."""
    target = processor(board)
    bundle = planned(model.preset, forms[target], target)
    weights = weight_bytes(bundle, NATIVE, saturates=False) if target == "cpu" else None
    return plan_for(bundle, board, max_context=CONTEXT, weights=weights)


def processor(board: Board) -> str:
    """Target of an export for a board: "cpu" or "gpu"."""
    return "cpu" if board.compute_capability is None else "gpu"


def verdict(model: Model, forms: dict[str, Form], board: Board) -> str:
    """Tell how a model fits a board.

    "fits": it runs and its engines are built there. "elsewhere": they are built on a larger machine with that GPU.
    "from disk": a CPU's memory does not hold the mapped weights, so that they are read at every token. "no": `qwenvl
    plan` says that it does not fit.
    """
    found = fit(model, forms, board)
    if not found.fits:
        return "no"
    if board.compute_capability is None:
        mapped = planned(model.preset, forms["cpu"], "cpu").manifest.files[DECODER_DATA].size
        return "fits" if mapped <= found.spare_bytes else "from disk"
    if not board.unified:  # the memory of a server's host is not known
        return "fits"
    version = _JETPACK_6 if board.compute_capability == _ORIN else _LATER
    floats = planned(model.preset, Form("fp16"), "gpu").manifest.files
    needed = peak_bytes(max(floats[name].size for name in (VISION_DATA, DECODER_DATA)), TENSORRT, version)
    return "fits" if needed <= board.free_bytes else "elsewhere"


def sizes() -> str:
    """Parameters, licence, and disk and memory of each precision."""
    pi, nano = BOARDS["raspberry-pi-5-16gb"], BOARDS["orin-nano-8gb"]
    rows = []
    for model in MODELS:
        count = sum(functools.reduce(int.__mul__, shape, 1) for shape in family_of(model.preset).tensors.values())
        kinds = [(forms[target], target) for target in ("cpu", "gpu") for forms in (SMALL, LARGE)]
        disk = [gigabytes(disk_bytes(planned(model.preset, *kind))) for kind in kinds]
        memory = [gigabytes(fit(model, choice, pi).plan.total) for choice in (SMALL, LARGE)]
        memory += [gigabytes(fit(model, choice, nano).plan.total) for choice in (SMALL, LARGE)]
        both = [f"{a} / {b}" for a, b in zip(disk, memory, strict=True)]
        rows.append([model.title, f"{count / 1e9:.2f}", model.licence, *both])
    head = ["model", "billion parameters", "licence", "CPU int4", "CPU int8", "GPU int4", "GPU fp16"]
    return table(head, rows)


def boards(forms: dict[str, Form]) -> str:
    """Every model on every board whose processor has a precision."""
    shown = {name: title for name, title in SHOWN.items() if processor(BOARDS[name]) in forms}
    rows = [[model.title, *[verdict(model, forms, BOARDS[name]) for name in shown]] for model in MODELS]
    return table(["model", *shown.values()], rows)


def abilities() -> str:
    """Table of what each family can do, as its module in the runtime answers."""
    rows = []
    for title, preset in (
        ("Qwen-VL-Chat", "full"),
        ("Qwen2-VL", "qwen2-vl-2b"),
        ("Qwen2.5-VL", "qwen2.5-vl-3b"),
        ("Qwen3-VL", "qwen3-vl-2b"),
    ):
        family = family_of(preset).runtime_family()
        pictures = "any shape" if family.preprocessing.patches else "squares"
        seen = family.layout((640, 480)).tokens
        clips = tried(lambda family=family: family.clip_layout((64, 64), [0.0, 0.5], NO_LIMITS))  # type: ignore[misc]
        points = tried(lambda family=family: family.pointing_prompt("it"))  # type: ignore[misc]
        places = "JSON" if isinstance(family, JsonVLFamily) else "tags"
        rows.append([title, pictures, str(seen), clips, f"boxes in {places}", points])
    return table(["family", "pictures", "tokens of 640 x 480", "clips", "places", "points"], rows)


def tried(ask: Callable[[], object]) -> str:
    """Yes if a family answers, no if it refuses."""
    try:
        ask()
    except QwenVLError:
        return "no"
    return "yes"


def gigabytes(size: int) -> str:
    """Bytes in GB, with one decimal."""
    return f"{size / 1e9:.1f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


MAKERS: dict[str, Callable[[], str]] = {
    "sizes": sizes,
    "boards_small": lambda: boards(SMALL),
    "boards_large": lambda: boards(LARGE),
    "boards_integers": lambda: boards(INTEGERS),
    "boards_smallest": lambda: boards(SMALLEST),
    "abilities": abilities,
}


def filled(text: str) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{MAKERS[found[2]]()}{found[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
