"""Lowering of Qwen2-VL, Qwen2.5-VL and Qwen3-VL for TensorRT: the same numbers, and graphs that its parser takes."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import BackendError
from qwenvl_edge_export.export import export
from qwenvl_edge_export.families.dynamic_vl.picture_ranges import vision_ranges
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.tensorrt import build as build_module
from qwenvl_edge_export.tensorrt.engine_layers import read_layers
from qwenvl_edge_export.tensorrt.lint import check_graph
from qwenvl_edge_export.tensorrt.lowering import Lowering
from qwenvl_edge_export.tensorrt.network import ATTENTION, Network
from qwenvl_edge_export.tensorrt.plugin_lowering import DOMAIN, PluginLowering
from qwenvl_edge_export.tensorrt.profiles import choose_limits, decoder_shapes, vision_shapes
from support import kv_cache_attention_onnx
from support.dialects import RUNNABLE
from support.golden_graphs import (
    CAPACITY,
    FAMILIES,
    GoldenDecoder,
    GoldenGraphs,
    config_of,
    deepstack_rows,
    encode,
    golden,
    rope_rows,
    wide_checkpoint,
)
from support.paths import ROOT
from support.tensorrt import installed_rtx, release
from tools.nano.calibration import write as write_samples

# Operators beside those of Qwen-VL's lowered graphs, all in TensorRT 10.1's table of supported ones.
OPERATORS = set(
    "Add Cast Concat ConstantOfShape DequantizeLinear Div Expand Gather GatherND Gelu Gemm KVCacheAttention "
    "LayerNormalization MatMul Mul ReduceMean Reshape Shape Sigmoid Softmax Split Sqrt Squeeze Sub Transpose Unsqueeze "
    "Where".split()
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles of the golden checkpoints by family and precision, each made once."""
    made: dict[tuple[str, str], Bundle] = {}

    def get(family, precision):
        key = family, precision
        if key not in made:
            folder = tmp_path_factory.mktemp("_".join(key)) / "bundle"
            chosen = ExportPrecision.choose(precision, target="gpu")
            made[key] = export(golden(family), folder, precision=chosen, check=False)
        return made[key]

    return get


@pytest.fixture(scope="module")
def wide_bundles(tmp_path_factory):
    """Bundles of checkpoints that int4 for a GPU takes, by family and precision, each made once."""
    folder = tmp_path_factory.mktemp("wide")

    @functools.cache
    def checkpoint(family):
        return wide_checkpoint(folder / family, family)

    @functools.cache
    def get(family, precision):
        chosen = ExportPrecision.choose("int8" if precision == "w8a8" else precision, target="gpu")
        samples = write_samples(folder / f"{family}-samples", 2) if precision == "w8a8" else False
        place = folder / f"{family}-{precision}"
        return export(checkpoint(family), place, precision=chosen, calibration=samples, check=False)

    return get


@pytest.fixture(scope="module", params=FAMILIES)
def graphs(request, tmp_path_factory) -> GoldenGraphs:
    return GoldenGraphs(request.param, tmp_path_factory.mktemp(request.param), ExportPrecision.choose("fp32"))


def session(model, bundle):
    onnx.load_external_data_for_model(model, str(bundle.path))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_tower_in_older_operators(bundles, graphs, tmp_path):
    bundle = bundles(graphs.family, "fp32")
    model = onnx.load_model_from_string(PluginLowering(bundle, "vision.onnx", tmp_path).vision())
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20}
    lowered, arrays = session(model, bundle), graphs.vision
    for picture in "ac":
        pixels, grid = arrays[f"{picture}.pixel_values"], arrays[f"{picture}.grid_thw"]
        found = encode(lowered, graphs.config.vision, pixels, grid)
        np.testing.assert_allclose(found[0], arrays[f"{picture}.features"], rtol=0, atol=1e-5)


@pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the standard decoder needs ONNX Runtime 1.25")
def test_the_decoder_with_the_plugins_op(bundles, graphs, tmp_path):
    bundle = bundles(graphs.family, "fp32")
    model = onnx.load_model_from_string(PluginLowering(bundle, "decoder.onnx", tmp_path).decoder(CAPACITY))
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    dims = bundle.manifest.model
    op = kv_cache_attention_onnx.function(DOMAIN, dims.num_heads, dims.head_dim, int8=False, kv_heads=dims.num_kv_heads)
    model.functions.append(op)
    model.opset_import[0].version = 24  # the definition's, for ONNX Runtime
    run, embeds = GoldenDecoder(graphs, session(model, bundle)), graphs.text["one.inputs_embeds"]
    cos, sin = rope_rows(graphs, "one", len(embeds))
    deepstack = deepstack_rows(graphs, graphs.vision_session(STANDARD), "one")
    rows = None if deepstack is None else deepstack[:, None]
    logits = run(embeds[None], (cos[None], sin[None]), 0, rows)
    np.testing.assert_allclose(logits[0], graphs.text["one.logits"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_of_patches_and_windows(bundles, family):
    info = bundles(family, "fp32").manifest.family
    ranges = vision_ranges(info.config | {"max_pixels": 1280 * 28 * 28, "video_max_pixels": 1280 * 28 * 28})
    side = info.config["patch_size"]
    assert ranges["P"][2] == 1280 * 28 * 28 // (side * 2) ** 2 * 4
    assert ranges["P"][0] < ranges["P"][1] < ranges["P"][2]
    assert ("Wn" in ranges) == (family == "qwen2_5_vl")
    if "Wn" in ranges:
        # 1 x 200 tokens and 6 x 213 are 50 and 2 x 54 windows; a square of 1,280 tokens has 81.
        assert ranges["Wn"][2] >= 108 and ranges["WG"][2] == 64 * ranges["Wn"][2]


@pytest.mark.parametrize("precision", ["fp16", "int4", "w8a8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_release_gets_forms_that_it_takes(wide_bundles, family, precision, tmp_path):
    """The plugin's form before 10.15, native layers from there on; the other way round the lint says why not."""
    bundle = wide_bundles(family, precision)
    forms = dict.fromkeys(("10.3.0", "10.7.0", "10.13.3"), PluginLowering)
    forms |= dict.fromkeys(("10.15.1", "11.1.0"), Lowering)
    for version, kind in forms.items():
        for name in ("vision.onnx", "decoder.onnx"):
            folder = tmp_path / version / name
            folder.mkdir(parents=True)
            lowering = kind(bundle, name, folder)
            lowering.vision() if name == "vision.onnx" else lowering.decoder(CAPACITY)
            check_graph(lowering.model, name, release(version))
            if kind is Lowering:
                with pytest.raises(BackendError, match=rf'"{name}" is of opset 2\d, but TensorRT 10.3.0 reads'):
                    check_graph(lowering.model, name, release("10.3.0"))


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX comes for Linux on x86-64 only")
    return installed_rtx()


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_products_are_refused_where_they_are_not_built(bundles, rtx, family, tmp_path):
    """TensorRT-RTX's compiler ends with "FP32 GEMM is not supported" for sm_75, after the whole graph was parsed."""
    with pytest.raises(BackendError, match=r'"vision.onnx" multiplies ".*patch_embed.*" in float32, .* not .* sm_75'):
        build_module.build(bundles(family, "fp16"), "sm_75", choose_limits(bundles(family, "fp16"), max_context=64))
    assert not list((bundles(family, "fp16").path / "plans").glob("*"))
    lowering = Lowering(bundles(family, "fp16"), "vision.onnx", tmp_path)
    lowering.vision()
    check_graph(lowering.model, "vision.onnx", rtx, 80)
    check_graph(lowering.model, "vision.onnx", release("11.1.0"), 75)


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_are_native_and_rows_of_the_tower_float32(bundles, rtx, family, tmp_path):
    bundle = bundles(family, "fp16")
    lowering = Lowering(bundle, "vision.onnx", tmp_path)
    network = Network(rtx, lowering.vision(), tmp_path / "vision.onnx")
    assert network.native_layers()[ATTENTION] == config_of(family).vision.depth
    layers = map(network.network.get_layer, range(network.network.num_layers))
    norms = [layer for layer in layers if layer.type.name == "NORMALIZATION"]
    assert {str(layer.get_output(0).dtype) for layer in norms} <= {"DataType.FLOAT"}
    shapes = vision_shapes(bundle, lowering.graph, choose_limits(bundle, max_images=2))[0]
    assert shapes["pixel_values"][2][:2] == (2, vision_ranges(bundle.manifest.family.config)["P"][2])
    (tmp_path / "decoder").mkdir()
    lowering = Lowering(bundle, "decoder.onnx", tmp_path / "decoder")
    network = Network(rtx, lowering.decoder(128), tmp_path / "decoder" / "decoder.onnx")
    network.check_native(bundle.manifest.model.num_layers)
    for profile in decoder_shapes(lowering.graph, choose_limits(bundle, max_context=128, max_batch=2)):
        if family == "qwen3_vl":
            assert profile["deepstack"][0][1:3] == (1, 1)


# Each family in each precision, on every processor that TensorRT-RTX builds tensor-core kernels of these types for.
GPUS = itertools.cycle(("sm_80", "sm_86", "sm_89", "sm_120", "sm_121"))
BUILDS = [
    (family, precision, gpu)
    for (precision, family), gpu in zip(itertools.product(("fp16", "int4", "w8a8"), FAMILIES), GPUS, strict=False)
]


@pytest.mark.parametrize(("family", "precision", "gpu"), BUILDS)
def test_plans_are_built_and_move_nothing_twice(rtx, wide_bundles, family, precision, gpu, monkeypatch):
    """Both engines, with profiles over patches, windows and deepstack rows; weights are in them once.

    The builder's list says that decoding copies no cache, that no layer only widens a weight, and that integers are
    multiplied as integers.
    """
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import engines

    library = engines.verbose_library()
    monkeypatch.setattr(build_module, "installed_libraries", lambda: [library])
    bundle = wide_bundles(family, precision)
    limits = choose_limits(bundle, max_context=256, max_batch=2, max_images=2, chunk=64)
    plan = build_module.build(bundle, gpu, limits)
    plan.check_files()
    assert plan.manifest.precision["decoder"] == precision
    weights = bundle.manifest.files["decoder.data"].size
    assert weights * 0.8 < plan.manifest.files["decoder.plan"].size < weights + 20e6
    found = engines.figures(read_layers(library.log.everything))
    assert (found["whole_cache_copies"], found["widened"], found["int4_fused_share"]) == (0, [], 1.0)
    assert found["products"] > 20
    assert precision != "w8a8" or found["int8_share"] > 0.85
