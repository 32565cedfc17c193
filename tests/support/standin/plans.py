"""Plans for the stand-in, and its installation: a bundle's plan folder as `qwenvl build` lays it out."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import onnxruntime as ort

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import (
    DECODER_PLAN,
    FORMAT,
    PLANS_FOLDER,
    REFIT_GRAPHS,
    VISION_PLAN,
    Builder,
    PlanLimits,
    PlanManifest,
    bundle_digest,
    platform_name,
    plugin_file,
)
from qwenvl_edge.bundle.files import FileInfo, sha256
from qwenvl_edge_export.tensorrt.profiles import decoder_profiles, free_sizes
from support.standin import cuda_driver, cuda_runtime, nvrtc, tensorrt_api
from support.standin.machine import Machine

VERSION = "10.3.0.30"
LIMITS = PlanLimits(max_context=512, max_batch=3, max_images=2, chunk=64)
SCRATCH_BYTES = 4096


def write_plan(
    bundle: Bundle, target: str = "local", *, limits=LIMITS, capability=87, version=VERSION, plugin="", stripped=False
) -> Path:
    """Write plans/<target> of a bundle and return the folder."""
    folder = bundle.path / PLANS_FOLDER / target
    folder.mkdir(parents=True)
    profiles = decoder_profiles(limits)
    sizes = {"N": limits.max_images} | {name: most for name, (_, _, most) in free_sizes(bundle).items()}
    _write_engine(folder / VISION_PLAN, bundle, bundle.manifest.graphs.vision, capability, [], sizes)
    _write_engine(
        folder / DECODER_PLAN,
        bundle,
        bundle.manifest.graphs.decoder["standard"],
        capability,
        [(profile.tokens[2], profile.rows[2]) for profile in profiles.values()],
        {"B": limits.max_batch, "DB": limits.max_batch},
        {"C": limits.max_context},
    )
    if stripped:
        graphs = (bundle.manifest.graphs.vision, bundle.manifest.graphs.decoder["standard"])
        for (engine, refit), graph in zip(REFIT_GRAPHS.items(), graphs, strict=True):
            shutil.copyfile(bundle.file(graph), folder / refit)
            plan = json.loads((folder / engine).read_bytes().removeprefix(tensorrt_api.MAGIC)) | {"stripped": True}
            (folder / engine).write_bytes(tensorrt_api.MAGIC + json.dumps(plan).encode())
    if plugin:
        (folder / plugin_file(plugin)).write_bytes(tensorrt_api.PLUGIN)
    manifest = PlanManifest(
        format=FORMAT,
        target=target,
        builder=Builder("tensorrt", version, platform_name()),
        compute_capabilities=(capability,),
        dialect="plugin" if plugin else "standard",
        plugin=plugin,
        precision={"vision": "fp32", "decoder": "fp32", "kv_cache": bundle.manifest.precision.kv_cache},
        limits=limits,
        profiles=profiles,
        bundle_digest=bundle_digest(bundle.manifest),
        files={p.name: FileInfo(p.stat().st_size, sha256(p)) for p in sorted(folder.iterdir())},
    )
    manifest.write(folder)
    return folder


def change_manifest(folder: Path, **changes) -> None:
    """Change fields of a plan.json."""
    manifest = PlanManifest.from_json((folder / "plan.json").read_text())
    dataclasses.replace(manifest, **changes).write(folder)


def rewrite(bundle: Bundle, name: str, data: bytes) -> None:
    """Replace a file of the plan "local", with its hash in the manifest."""
    folder = bundle.path / PLANS_FOLDER / "local"
    (folder / name).write_bytes(data)
    files = {p.name: FileInfo(p.stat().st_size, sha256(p)) for p in folder.iterdir() if p.suffix != ".json"}
    change_manifest(folder, files=files)


def edit_engine(bundle: Bundle, name: str, **changes) -> None:
    """Change what an engine of the plan "local" is."""
    head, plan = (bundle.path / PLANS_FOLDER / "local" / name).read_bytes().split(b"\n", 1)
    rewrite(bundle, name, head + b"\n" + json.dumps(json.loads(plan) | changes).encode())


def install(monkeypatch, machine: Machine, *, version: str = VERSION, api: str = "tensorrt") -> ModuleType:
    """Let `import tensorrt` and `from cuda.bindings import ...` find the stand-in; return the former.

    api: "tensorrt", or "tensorrt_rtx", which is TensorRT for RTX.
    """
    packages = [ModuleType("cuda"), ModuleType("cuda.bindings"), cuda_runtime.make_module(machine)]
    packages += [nvrtc.make_module(machine), cuda_driver.make_module(machine)]
    packages[0].bindings = packages[1]
    packages[1].runtime, packages[1].nvrtc, packages[1].driver = packages[2:]
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    tensorrt = tensorrt_api.make_module(machine, name=api, version=version)
    tensorrt.__spec__ = ModuleSpec(api, None)  # PyTorch looks for it
    monkeypatch.setattr("qwenvl_edge.backends.select.driver_absent", lambda: not machine.driver)
    for module in (*packages, tensorrt):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return tensorrt


def _write_engine(path, bundle, graph, capability, calls, most, fixed=None) -> None:
    """calls: largest tokens and rows of each profile, none for the vision engine. most: the largest other sizes."""
    source = bundle.file(graph)
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    fixed = fixed or {}
    profiles = []
    for tokens, rows in calls or [(1, 1)]:
        largest = {"T": tokens, "DT": tokens, "K": rows, **most, **fixed}
        profiles.append(
            {
                node.name: [_shape(node, dict.fromkeys(largest, 1) | fixed), *[_shape(node, largest)] * 2]
                for node in session.get_inputs()
            }
        )
    presents = [node.name for node in session.get_outputs() if node.name.startswith("present.")]
    plan = {
        "onnx": str(source),
        "dimensions": fixed,
        "profiles": profiles,
        "aliases": {name: name.replace("present.", "past_key_values.") for name in presents},
        "compute_capability": capability,
        "scratch_bytes": SCRATCH_BYTES,
    }
    path.write_bytes(tensorrt_api.MAGIC + json.dumps(plan).encode())


def _shape(node, sizes: dict[str, int]) -> list[int]:
    return [sizes.get(size, size) for size in node.shape]
