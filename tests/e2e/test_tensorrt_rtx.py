"""models/nano becomes TensorRT engines in every precision, on a machine without a GPU (TensorRT-RTX)."""

from __future__ import annotations

import re
import shutil

import numpy as np
import onnxruntime as ort
import pytest

from support.paths import ROOT

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX comes for Linux on x86-64 only")
pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")

from qwenvl_edge import cli
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import Plan
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.tensorrt import build
from qwenvl_edge_export.tensorrt.build import write_engine
from qwenvl_edge_export.tensorrt.engine_layers import read_layers
from qwenvl_edge_export.tensorrt.lowering import Lowering
from qwenvl_edge_export.tensorrt.network import ATTENTION, CACHE_UPDATE, ROTARY, Network
from qwenvl_edge_export.tensorrt.plugin_lowering import PluginLowering
from qwenvl_edge_export.tensorrt.profiles import choose_limits, decoder_shapes, vision_shapes
from support.bundles import copy_of
from support.dialects import RUNNABLE
from support.tensorrt import installed_rtx
from tools.nano.calibration import write

NANO = ROOT / "models" / "nano"
CAPACITY = 256
# Every precision that TensorRT multiplies, and every processor that TensorRT-RTX builds for.
BUILDS = {
    "fp32": ("sm_86", "fp32", "cpu"),
    "fp16": ("sm_75", "fp16", "gpu"),
    "bf16": ("sm_80", "bf16", "gpu"),
    "int4": ("sm_120", "int4", "gpu"),
    "w8a8": ("sm_86", "w8a8", "gpu"),
    "fp32 with pictures of a CPU": ("sm_121", "fp32", "cpu"),  # they quantize activations at run time
}
# Bundles that are lowered but not built.
REFUSED = {
    "int8 of a CPU": ("sm_89", "int8", "cpu"),
    "int4 in blocks of 32": ("sm_89", "int4", "cpu"),
    "int4 with a head of 8 bits": ("sm_89", "int4", "gpu"),
}
OPTIONS = {
    "int4 in blocks of 32": {"block": 32, "head": "int4"},
    "int4 with a head of 8 bits": {"head": "int8"},
    "fp32 with pictures of a CPU": {"vision": "int8"},
}


@pytest.fixture(scope="module")
def bundles(nano_exports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt")

    def bundle(name):
        _, precision, target = (BUILDS | REFUSED)[name]
        place = folder / name
        if place.exists():
            return Bundle.open(place)
        if name != "w8a8":
            return copy_of(
                nano_exports(precision, target=target, **OPTIONS.get(name, {})), place
            )  # plans are written into it
        chosen = ExportPrecision.choose(precision, target=target)
        return export(NANO, place, precision=chosen, calibration=write(folder / "samples", 2), check=False)

    return bundle


@pytest.fixture(scope="module")
def library():
    return installed_rtx()


@pytest.fixture
def engines(monkeypatch):
    """benchmarks/engines.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import engines

    return engines


@pytest.mark.parametrize("name", BUILDS)
def test_engines_are_built(bundles, capsys, monkeypatch, engines, name):
    target, precision, _ = BUILDS[name]
    bundle, library = bundles(name), engines.verbose_library()
    monkeypatch.setattr(build, "installed_libraries", lambda: [library])
    command = ["build", str(bundle.path), "--target", target, "--max-context", str(CAPACITY), "--chunk", "64"]
    assert cli.main(command) == 0
    assert "is written: vision.plan" in capsys.readouterr().out
    plan = Plan.open(bundle, target)
    plan.check_files()
    assert plan.manifest.compute_capabilities == (int(target[3:]),)
    assert plan.manifest.precision["decoder"] == precision
    assert plan.manifest.limits.max_context == CAPACITY
    # Weights are in the plans once, in the bits that they have in the bundle.
    weights = bundle.manifest.files["decoder.data"].size
    assert weights * 0.8 < plan.manifest.files["decoder.plan"].size < weights + 20e6
    assert sorted(path.name for path in (bundle.path / "plans").iterdir()) == [target]
    if name in engines.PRECISIONS:
        moves_nothing_twice(engines.figures(read_layers(library.log.everything)), name)


def moves_nothing_twice(found, name):
    """No decode layer copies a cache, no layer only widens a weight, and products are of the stored integers."""
    assert (found["whole_cache_copies"], found["widened"]) == (0, [])
    assert found["int4_fused_share"] == 1.0 and found["products"] > 30
    # Products whose inputs would lose too much as integers take floats: see quantization/smoothquant.py.
    assert name != "w8a8" or found["int8_share"] > 0.85


def test_the_gate_measures_a_bundle(bundles, engines):
    found = engines.measure(bundles("int4"), "sm_86")
    moves_nothing_twice(found, "int4")
    assert all(size > 5e6 for size in found["plan_bytes"].values())
    assert engines.faults({"nano": {"int4": {"sm_86": found}}}) == []
    for wrong in ({"whole_cache_copies": 2}, {"widened": ["a"]}, {"int4_fused_share": 0.9}, {"refused": "why"}):
        assert len(engines.faults({"nano": {"int4": {"sm_86": found | wrong}}})) == 1
    assert engines.faults({"nano": {"fp16": {"sm_75": {"refused": "why"}}}}) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8 of a CPU", r"in blocks of 8-bit integers, which TensorRT does not multiply; export with --target gpu"),
        ("int4 in blocks of 32", r"4-bit weights in blocks of 32; TensorRT takes 64 and 128: export with --block-size"),
        ("int4 with a head of 8 bits", r"lm_head.weight.*in blocks of 8-bit integers"),
    ],
)
def test_forms_that_tensorrt_refuses_are_refused_before_a_build(bundles, capsys, name, message):
    bundle = bundles(name)
    assert cli.main(["build", str(bundle.path), "--target", REFUSED[name][0]]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (bundle.path / "plans").exists()


@pytest.mark.parametrize("name", BUILDS)
def test_native_layers_are_used(bundles, library, tmp_path, name):
    lowering = Lowering(bundles(name), "decoder.onnx", tmp_path)
    network = Network(library, lowering.decoder(CAPACITY), tmp_path / "decoder.onnx")
    layers = bundles(name).manifest.model.num_layers
    found = network.native_layers()
    assert (found[CACHE_UPDATE], found[ROTARY], found[ATTENTION]) == (2 * layers, 2 * layers, layers)
    network.check_native(layers)
    # Calibrated products of q, k and v are three; the head of int4 is float16.
    matrices = {"int4": 5 * layers, "w8a8": 7 * layers + 1}.get(name, 0)
    assert found["DEQUANTIZE"] == matrices + found["QUANTIZE"]
    assert (found["QUANTIZE"] > 0) == (name == "w8a8")
    for layer in layers_of(network.network, ATTENTION):
        assert layer.get_input(1).name.startswith("present.")


@pytest.mark.parametrize("graph", ["decoder", "vision"])
def test_attention_is_fused(bundles, library, tmp_path, graph):
    """In float16 the engine is built without leave to take attention apart, so one kernel does it."""
    bundle, trt = bundles("fp16"), library.module
    lowering = Lowering(bundle, f"{graph}.onnx", tmp_path)
    limits = choose_limits(bundle, max_context=CAPACITY, chunk=64)
    model = lowering.decoder(CAPACITY) if graph == "decoder" else lowering.vision()
    shapes = (
        decoder_shapes(lowering.graph, limits) if graph == "decoder" else vision_shapes(bundle, lowering.graph, limits)
    )[-1]
    network = Network(library, model, tmp_path / "model.onnx")
    for layer in layers_of(network.network, ATTENTION):
        layer.__class__ = trt.IAttentionInputLayer
        layer.attention.decomposable = False
    assert is_built(network, shapes, tmp_path)


def test_norms_of_vision_are_float32(bundles, library, tmp_path):
    network = Network(library, Lowering(bundles("fp16"), "vision.onnx", tmp_path).vision(), tmp_path / "vision.onnx")
    norms = list(layers_of(network.network, "NORMALIZATION"))
    assert len(norms) == 2 * 5 + 3  # two a block, before and behind the blocks, of the resampler's keys
    assert {str(layer.get_output(0).dtype) for layer in norms} == {"DataType.FLOAT"}


def test_vision_for_older_parsers_is_built(bundles, library, tmp_path):
    """The form of TensorRT 10.3; its decoder has the plugin's op, at which TensorRT-RTX's parser aborts."""
    lowering = PluginLowering(bundles("fp16"), "vision.onnx", tmp_path)
    network = Network(library, lowering.vision(), tmp_path / "vision.onnx")
    found = network.native_layers()
    assert (found[ATTENTION], found["SOFTMAX"]) == (0, 6)  # five blocks and the resampler
    shapes = vision_shapes(bundles("fp16"), lowering.graph, choose_limits(bundles("fp16")))
    assert is_built(network, shapes[0], tmp_path)


def layers_of(network, kind):
    return [layer for layer in map(network.get_layer, range(network.num_layers)) if layer.type.name == kind]


def is_built(network, shapes, folder):
    config, profile = network.builder.create_builder_config(), network.builder.create_optimization_profile()
    for name, ranges in shapes.items():
        profile.set_shape(name, *ranges)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(network.library.module.ComputeCapability.SM86, 0)
    return write_engine(network, config, folder / "engine.plan")


def run(lowering, folder, model, inputs):
    """Run a lowered graph with ONNX Runtime, which takes no links that leave the folder."""
    for path in folder.iterdir():
        if path.is_symlink():
            target = path.resolve()
            path.unlink()
            shutil.copyfile(target, path)
    (folder / "model.onnx").write_bytes(model)
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def plain(bundle, name, inputs):
    return ort.InferenceSession(bundle.file(name), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def pictures(bundle):
    size = bundle.manifest.family.config["image_size"]
    return {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)}


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the standard decoder needs ONNX Runtime 1.25")
@pytest.mark.parametrize(
    ("name", "limit"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8 of a CPU", 1e-2), ("int4", 1e-2), ("w8a8", 1e-3)]
)
def test_lowering_keeps_the_decoder(bundles, tmp_path, name, limit):
    bundle = bundles(name)
    model = bundle.manifest.model
    random = np.random.default_rng(0)
    cache_type = np.float32 if bundle.manifest.precision.compute["decoder"] == "fp32" else np.float16
    angles = np.outer(np.arange(7, 12), 1e4 ** -(np.arange(0, model.head_dim, 2) / model.head_dim))[None]
    inputs = {
        "inputs_embeds": random.standard_normal((1, 5, model.hidden_size)).astype(np.float32) * 0.05,
        "write_indices": np.array([7]),
        "rope_cos": np.cos(angles).astype(np.float32),
        "rope_sin": np.sin(angles).astype(np.float32),
        "query_scale": random.uniform(1, 2, (1, 5)).astype(np.float32),
        "logits_indices": np.array([[0, 4]]),
    }
    shape = (1, model.num_heads, CAPACITY, model.head_dim)
    for i in range(model.num_layers):
        for part in ("key", "value"):
            inputs[f"past_key_values.{i}.{part}"] = random.standard_normal(shape).astype(cache_type)
    lowering = Lowering(bundle, "decoder.onnx", tmp_path)
    lowered = run(lowering, tmp_path, lowering.decoder(CAPACITY), inputs)
    assert distance(lowered, plain(bundle, "decoder.onnx", inputs)) < limit


@pytest.mark.parametrize(("name", "limit"), [("fp32", 1e-5), ("fp16", 2e-2)])
def test_lowering_keeps_vision(bundles, tmp_path, name, limit):
    bundle = bundles(name)
    lowering = Lowering(bundle, "vision.onnx", tmp_path)
    lowered = run(lowering, tmp_path, lowering.vision(), pictures(bundle))
    assert distance(lowered, plain(bundle, "vision.onnx", pictures(bundle))) < limit


def test_weights_alone_in_integers_lose_less_than_activations_too(bundles, tmp_path):
    bundle = bundles("int8 of a CPU")
    reference = plain(bundles("fp32"), "vision.onnx", pictures(bundle))
    lowering = Lowering(bundle, "vision.onnx", tmp_path)
    lowered = run(lowering, tmp_path, lowering.vision(), pictures(bundle))
    assert distance(lowered, reference) < distance(plain(bundle, "vision.onnx", pictures(bundle)), reference)
