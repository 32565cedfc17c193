"""TensorRT-RTX engines, layer by layer: what is copied, widened and left unfused at each token.

    python benchmarks/engines.py [--checkpoint models/nano] [--family qwen3_vl ...] [--preset qwen3-vl-2b ...]
        [--target sm_86 ...] [--json FILE]
    python benchmarks/engines.py --family all --target all --json benchmarks/results/engines.json    # the whole gate

No GPU is needed: the figures are read off the builder's list of layers after fusion, not off a clock. The decoder's
decode profile counts, and the picture side. standalone_dequantize are layers that only widen a weight. It ends with 1
where a layer copies a cache, only widens a weight, or multiplies 4-bit weights otherwise than fused, and where engines
are refused for another GPU than the oldest.
A family is a checkpoint of random weights in its published layout, narrow enough to take half a minute per engine. A
preset is one in the published widths with four decoder layers, which takes 3 GB of disk; it is not calibrated, so it
has no w8a8 engine. Samples for w8a8 are two drawn pictures.
"""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parent.parent))  # tools
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # support

from common import arguments, conditions, finish

from qwenvl_edge.backends.tensorrt.library import Library, installed_libraries
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import TENSORRT_RTX
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.tensorrt.build import write_engine
from qwenvl_edge_export.tensorrt.engine_layers import Layer, read_layers, share
from qwenvl_edge_export.tensorrt.lint import check_graph
from qwenvl_edge_export.tensorrt.lowering import Lowering
from qwenvl_edge_export.tensorrt.network import Network
from qwenvl_edge_export.tensorrt.profiles import choose_limits, decoder_shapes, vision_shapes
from support.golden_graphs import FAMILIES, wide_checkpoint
from tools import synthetic_checkpoint, synthetic_families
from tools.nano.calibration import write as write_samples

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "int4": {"precision": "int4"},
    "w8a8": {"precision": "w8a8"},
}
ROUNDED = ("fp16", "int4")  # those that need no calibration
# What TensorRT-RTX 1.7 builds for; the oldest has no 4-bit weights.
_SINCE_AMPERE = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
OLDEST = "sm_75"  # products of float32 are refused, which the towers of the newer families have
TARGETS = {OLDEST: ("fp16", "w8a8")} | dict.fromkeys(_SINCE_AMPERE, tuple(PRECISIONS))
ALL = "all"
LAYERS = 4  # of a preset; Qwen3-VL's first three get rows of picture features
MAX_CONTEXT, CHUNK = 256, 64
Engines: TypeAlias = dict[str, dict[str, dict[str, Any]]]  # figures by precision and target


def verbose_library() -> Library:
    """Return TensorRT-RTX with a log that keeps every line, or end the program with one sentence."""
    for found in installed_libraries():
        if found.api == TENSORRT_RTX:
            return Library(found.api, found.module, _verbose_log(found.module))
    sys.exit("TensorRT-RTX is not installed; pip install 'qwenvl-edge[tensorrt-rtx]'.")


def _verbose_log(module: Any) -> Any:
    class Log(module.ILogger):  # type: ignore[misc,name-defined,unused-ignore]
        """Keeps every line in `everything`, and warnings and errors in `lines`, as Library wants them."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.everything: list[str] = []
            self.lines: deque[str] = deque(maxlen=6)

        def log(self, severity: Any, msg: str) -> None:
            self.everything.append(msg)
            if int(severity) <= 2:
                self.lines.append(msg)

    return Log()


def layers_of(bundle: Bundle, graph: str, target: str, folder: Path) -> tuple[list[Layer], int]:
    """Build one engine; return its layers and the bytes of its plan. graph: "decoder" or "vision"."""
    library = verbose_library()
    trt, limits = library.module, choose_limits(bundle, max_context=MAX_CONTEXT, chunk=CHUNK)
    names = {"decoder": bundle.manifest.graphs.decoder[STANDARD], "vision": bundle.manifest.graphs.vision}
    lowering = Lowering(bundle, names[graph], folder)
    model = lowering.decoder(MAX_CONTEXT) if graph == "decoder" else lowering.vision()
    check_graph(lowering.model, names[graph], library, int(target.removeprefix("sm_")))
    if graph == "decoder":
        profiles = decoder_shapes(lowering.graph, limits)
    else:
        profiles = vision_shapes(bundle, lowering.graph, limits)
    network = Network(library, model, folder / names[graph])
    config = network.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for shapes in profiles:
        profile = network.builder.create_optimization_profile()
        for name, ranges in shapes.items():
            profile.set_shape(name, *ranges)
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.upper().replace("_", "")), 0)
    plan = folder / f"{graph}.plan"
    if not write_engine(network, config, plan):
        raise library.failed(f"build {graph}")
    return read_layers(library.log.everything), plan.stat().st_size


def measure(bundle: Bundle, target: str) -> dict[str, Any]:
    """Figures of one bundle's engines."""
    with tempfile.TemporaryDirectory() as work:
        folders = {name: Path(work) / name for name in ("decoder", "vision")}
        for folder in folders.values():
            folder.mkdir()
        built = {name: layers_of(bundle, name, target, folder) for name, folder in folders.items()}
    if not all(layers for layers, _ in built.values()):
        sys.exit("TensorRT-RTX listed no layers; this version prints them otherwise than 1.7.1.")
    found = figures([layer for layers, _ in built.values() for layer in layers])
    return {"target": target} | found | {"plan_bytes": {name: size for name, (_, size) in built.items()}}


def figures(layers: Iterable[Layer]) -> dict[str, Any]:
    """Figures of the layers of a decoder and a picture side; of each the first profile counts, the decoder's decode."""
    layers = [layer for layer in layers if layer.profile == 0]
    products = [layer for layer in layers if layer.is_product]
    int4 = [layer for layer in layers if any(tensor.dtype == "Int4" for tensor in layer.constants)]
    return {
        "layers": len(layers),
        "products": len(products),
        "whole_cache_copies": sum(layer.copies_cache for layer in layers),
        "standalone_dequantize": sum(layer.widens_weight for layer in layers),
        "int4_fused_share": share(int4, [layer for layer in int4 if layer.is_product]),
        "int8_share": share(products, [layer for layer in products if layer.multiplies_integers]),
        "widened": [layer.name for layer in layers if layer.widens_weight],
    }


def engines_of(checkpoint: Path, names: Iterable[str], targets: Sequence[str]) -> Engines:
    """Export a checkpoint in each precision, and measure its engines for each target that has the precision."""
    found: Engines = {}
    for name in names:
        wanted = [target for target in targets if name in TARGETS[target]]
        if not wanted:
            continue
        precision = ExportPrecision.choose(**{**PRECISIONS[name], "target": "gpu"})
        with tempfile.TemporaryDirectory() as folder:
            samples = write_samples(Path(folder) / "samples", 2) if name == "w8a8" else False
            bundle = export(checkpoint, Path(folder) / name, precision=precision, calibration=samples, check=False)
            found[name] = {}
            for target in wanted:
                try:
                    figures = measure(bundle, target)
                except BackendError as error:
                    figures = {"target": target, "refused": str(error)}
                print(f"{checkpoint.name:16}{name:6}", figures, flush=True)
                found[name][target] = figures
    return found


def main() -> None:
    """Export, build and read every precision of every checkpoint for every target."""
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/nano"))
    parser.add_argument("--family", action="append", default=[], choices=[*FAMILIES, ALL])
    parser.add_argument("--preset", action="append", default=[], choices=list(synthetic_families.PRESETS))
    parser.add_argument("--target", action="append", choices=[*TARGETS, ALL], help="default: sm_86")
    options = parser.parse_args()
    before, targets = conditions(), options.target or ["sm_86"]
    targets = list(TARGETS) if ALL in targets else targets
    found = {options.checkpoint.name: engines_of(options.checkpoint, PRECISIONS, targets)}
    for family in FAMILIES if ALL in options.family else options.family:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = wide_checkpoint(Path(folder) / family, family)
            found[family] = engines_of(checkpoint, PRECISIONS, targets)
    for preset in options.preset:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / preset
            synthetic_checkpoint.write(checkpoint, preset, layers=LAYERS)
            found[preset] = engines_of(checkpoint, ROUNDED, targets)
    finish(options, before, headline(found), found)
    if wrong := faults(found):
        sys.exit("\n".join(wrong))


def faults(found: Mapping[str, Engines]) -> list[str]:
    """The engines that are not built, move something twice or widen 4-bit weights, a line each."""
    return [
        f"{name} {precision} {target}: {figures}"
        for name, precision, target, figures in _each(found)
        if ("refused" in figures and target != OLDEST)
        or figures.get("whole_cache_copies")
        or figures.get("widened")
        or figures.get("int4_fused_share", 1) < 1
    ]


def _each(found: Mapping[str, Engines]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for name, engines in found.items():
        for precision, targets in engines.items():
            for target, figures in targets.items():
                yield name, precision, target, figures


def headline(found: Mapping[str, Engines]) -> dict[str, Any]:
    """Sums over all engines; of the shares the smallest. plans: pairs of engines."""
    engines = list(_each(found))
    every = [each for each in engines if "refused" not in each[3]]
    shares = {
        kind: [figures[share] for _, precision, _, figures in every if precision == kind]
        for kind, share in (("int4", "int4_fused_share"), ("w8a8", "int8_share"))
    }
    return {
        "whole_cache_copies": sum(figures["whole_cache_copies"] for *_, figures in every),
        "standalone_dequantize": sum(figures["standalone_dequantize"] for *_, figures in every),
        "int4_fused_share": min(shares["int4"], default=None),
        "w8a8_int8_share": min(shares["w8a8"], default=None),
        "plans": len(every),
        "refused": len(engines) - len(every),
    }


if __name__ == "__main__":
    main()
