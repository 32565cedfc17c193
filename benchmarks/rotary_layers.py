"""The layers that TensorRT-RTX's builder makes of a decoder with either form of rotary inputs (rotary_forms.py).

An engine can be built without a GPU but not opened, so the list of its layers comes from the builder's verbose log.
Each layer names the ONNX nodes that went into it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from rotary_graphs import as_rows, gather_rows, write_decoder

from qwenvl_edge.backends.onnxruntime_session import STANDARD
from qwenvl_edge.backends.plans import TENSORRT_RTX, PlanLimits
from qwenvl_edge.backends.tensorrt_library import Library, installed_libraries
from qwenvl_edge_export.tensorrt.lowering import Lowering
from qwenvl_edge_export.tensorrt.network import Network
from qwenvl_edge_export.tensorrt.profiles import decoder_shapes

LIMITS = PlanLimits(max_context=2048, max_batch=1, max_images=1, chunk=128)
FORMS = ("table", "rows", "folded", "gathered")
MODELS = {"nano": None, "1b": 4}
PRECISIONS = ("fp16", "int4")
_LAYER = re.compile(r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: (?P<rest>.*)")
_PROFILES = {"_myl0_": "decode", "_myl1_": "prefill", "_myl2_": "verify"}


def engine_layers() -> dict[str, Any]:
    """Build every form of every decoder for sm_86 and print the layers; {} without TensorRT-RTX."""
    library = next((each for each in installed_libraries() if each.api == TENSORRT_RTX), None)
    if library is None:
        print("TensorRT-RTX is not installed; its layers are left out")
        return {}
    found: dict[str, Any] = {}
    for (name, layers), precision in itertools.product(MODELS.items(), PRECISIONS):
        with tempfile.TemporaryDirectory() as folder:
            _, paths = write_decoder(name, Path(folder), precision, "gpu", layers)
            for form in FORMS:
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    lowering = Lowering(_Written(paths[STANDARD]), "decoder.onnx", Path(work))  # type: ignore[arg-type]
                    change(lowering, form)
                    label = f"{name} {precision} {form}"
                    found[label] = built(library, lowering, Path(work))
                    show(label, found[label])
    return found


class _Written:
    """As much of a bundle as lowering needs: a decoder's files."""

    def __init__(self, decoder: Path):
        self._decoder = decoder

    def file(self, name: str) -> Path:
        """The decoder's graph, or what lies beside it."""
        return self._decoder if name == "decoder.onnx" else self._decoder.with_name(name)


def change(lowering: Lowering, form: str) -> None:
    """Give a graph in the table form another one."""
    if form != "table":
        as_rows(lowering.model, fold=form == "folded")
    if form == "gathered":
        gather_rows(lowering.graph)


def built(library: Library, lowering: Lowering, folder: Path) -> dict[str, Any]:
    """The network's layers as parsed, and the engine's by profile."""
    library = dataclasses.replace(library, log=_log(library.module))
    network = Network(library, lowering.decoder(LIMITS.max_context), folder / "decoder.onnx")
    parsed = network.native_layers()
    trt, config = library.module, network.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for shapes in decoder_shapes(lowering.graph, LIMITS):
        profile = network.builder.create_optimization_profile()
        for name, ranges in shapes.items():
            profile.set_shape(name, *ranges)
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = network.builder.build_serialized_network(network.network, config)
    if plan is None:
        raise library.failed("build the decoder")
    lines = "\n".join(library.log.lines).splitlines()
    found = [match for line in lines if (match := _LAYER.match(line))]
    return {
        "network": dict(sorted(parsed.items())),
        "engine_bytes": memoryview(plan).nbytes,
        "engine": {profile: _profile([m for m in found if mark in m["name"]]) for mark, profile in _PROFILES.items()},
    }


def _profile(layers: list[re.Match[str]]) -> dict[str, Any]:
    rotary = [layer for layer in layers if "RotaryEmbedding" in layer["rest"].split("Metadata:")[-1]]
    rope = [layer for layer in layers if re.search(r"Name: (rope_|position_ids|query_scale)", layer["rest"])]
    return {
        "layers": len(layers),
        "kinds": dict(Counter(layer["kind"] for layer in layers)),
        "with_rotary": [layer["name"] for layer in rotary],
        "reading_rotary_inputs": [layer["name"] for layer in rope],
        "alone": sum(_nodes(layer) <= {"RotaryEmbedding"} for layer in rotary),
    }


def _nodes(layer: re.Match[str]) -> set[str]:
    """The kinds of ONNX nodes that went into a layer."""
    return set(re.findall(r"\[ONNX Layer: ([A-Za-z]+)_", layer["rest"]))


def show(label: str, found: dict[str, Any]) -> None:
    """What became of one form."""
    network = {kind: found["network"].get(kind, 0) for kind in ("ROTARY_EMBEDDING", "GATHER", "SHUFFLE", "CAST")}
    print(f"TensorRT-RTX {label}: {sum(found['network'].values())} layers in the network, {network}")
    for profile, layers in found["engine"].items():
        print(
            f"  {profile}: {layers['layers']} layers, {layers['kinds']}; {len(layers['with_rotary'])} hold rotary "
            f"embedding, {layers['alone']} nothing else; the rotary inputs are read by "
            f"{len(layers['reading_rotary_inputs'])}",
            flush=True,
        )


def _log(module: Any) -> Any:
    class Log(module.ILogger):  # type: ignore[misc,name-defined,unused-ignore]
        """Keeps every line."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append(msg)

    return Log()
