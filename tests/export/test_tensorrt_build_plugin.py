"""The graphs for TensorRT before 10.15: the same numbers from opset 20 and the plugin's op, given by its definition."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from support.dialects import RUNNABLE
from support.random_checkpoint import config_dict

pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")

from qwenvl_edge.backends.tensorrt.library import Library
from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.bundle.engines import DECODER_PLAN, TENSORRT, TENSORRT_RTX, VISION_PLAN, Plan, PlanLimits
from qwenvl_edge.errors import BackendError, BundleError
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.tensorrt import build as build_module
from qwenvl_edge_export.tensorrt.plugin_lowering import DOMAIN, PluginLowering, install_plugin, needs_plugin
from support import kv_cache_attention_onnx

CAPACITY = 48
# Those of TensorRT 10.1's table of supported operators that are used here.
OPERATORS = set(
    "Add Cast Concat ConstantOfShape Conv DequantizeLinear Div Expand GatherND Gelu Gemm LayerNormalization Log MatMul "
    "Max Mul Reshape ReduceMean Shape Sigmoid Softmax Split Sqrt Transpose Unsqueeze KVCacheAttention".split()
)


def library(version="10.3.0.26", api=TENSORRT):
    return Library(api, SimpleNamespace(__version__=version), SimpleNamespace(lines=[]))


BUNDLES = {"log-n": (True, "float"), "no log-n": (False, "float"), "int8 cache": (True, "int8")}


@pytest.fixture(scope="module", params=BUNDLES.values(), ids=BUNDLES)
def bundle(request, tmp_path_factory):
    from support.random_checkpoint import write_checkpoint

    folder, (logn, cache) = tmp_path_factory.mktemp("plugin"), request.param
    path = write_checkpoint(folder / "checkpoint", raw=config_dict(use_logn_attn=logn), seed=5)
    return export(path, folder / "bundle", precision=ExportPrecision.choose("fp32", kv_cache=cache), check=False)


def lowered(bundle, name, folder):
    lowering = PluginLowering(bundle, name, folder)
    model = onnx.load_model_from_string(lowering.decoder(CAPACITY) if name == "decoder.onnx" else lowering.vision())
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    onnx.load_external_data_for_model(model, str(bundle.path))
    return model


def session(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.skipif(STANDARD not in RUNNABLE, reason="the standard decoder needs ONNX Runtime 1.25")
def test_the_decoder_is_the_same(bundle, tmp_path):
    model, dims = lowered(bundle, "decoder.onnx", tmp_path), bundle.manifest.model
    int8 = bundle.manifest.precision.kv_cache == "int8"
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20, DOMAIN: 1}
    model.functions.append(kv_cache_attention_onnx.function(DOMAIN, dims.num_heads, dims.head_dim, int8=int8))
    model.opset_import[0].version = 24  # the definition's, for ONNX Runtime
    random = np.random.default_rng(0)
    start = np.array([7, 23])
    places = start[:, None] + np.arange(5)
    angles = places[..., None] * 1e4 ** -(np.arange(0, dims.head_dim, 2) / dims.head_dim)
    inputs = {
        "inputs_embeds": random.standard_normal((2, 5, dims.hidden_size)).astype(np.float32),
        "write_indices": start,
        "rope_cos": np.cos(angles).astype(np.float32),
        "rope_sin": np.sin(angles).astype(np.float32),
        "query_scale": random.uniform(1, 2, (2, 5)).astype(np.float32),
        "logits_indices": np.array([[0, 4], [1, 2]]),
    }
    expected = ort.InferenceSession(bundle.file("decoder.onnx"), providers=["CPUExecutionProvider"])
    if "query_scale" not in {node.name for node in expected.get_inputs()}:
        del inputs["query_scale"]  # a family without log-n
    for node in expected.get_inputs():
        if node.name.startswith("past_key_values."):
            shape = (2, dims.num_heads, CAPACITY, *node.shape[3:])
            values = random.standard_normal(shape).astype(np.float32)
            if int8:  # a scale, or integers for one
                values = random.integers(-127, 128, shape).astype(np.int8) if node.shape[3:] else np.abs(values) / 60
            inputs[node.name] = values
    found = session(model)
    names = [output.name for output in found.get_outputs()]
    assert names == [each.name for each in expected.get_outputs()]
    for name, ours, theirs in zip(names, found.run(None, inputs), expected.run(None, inputs), strict=True):
        assert ours.dtype == theirs.dtype
        # A last digit before a rounding to integers can become a whole one behind it.
        atol = 1 if theirs.dtype == np.int8 else (1e-3 if int8 else 2e-5) * np.abs(theirs).max()
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs.astype(np.float32), rtol=1e-7, atol=atol, err_msg=name
        )
        if theirs.dtype == np.int8 and name.startswith("present.0."):
            assert np.mean(ours != theirs) < 1e-3


def test_vision_is_the_same(bundle, tmp_path):
    model, size = lowered(bundle, "vision.onnx", tmp_path), bundle.manifest.family.config["image_size"]
    onnx.checker.check_model(model, full_check=True)
    pictures = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)}
    expected = ort.InferenceSession(bundle.file("vision.onnx"), providers=["CPUExecutionProvider"]).run(None, pictures)
    ours = session(model).run(None, pictures)
    np.testing.assert_allclose(ours[0], expected[0], atol=2e-5 * np.abs(expected[0]).max())


@pytest.mark.parametrize(
    ("installed", "needed"),
    [
        (library("10.3.0.26"), True),
        (library("10.14.1.48"), True),
        (library("10.15.1"), False),
        (library("11.4.0.106"), False),
        (library("1.7.1.116", TENSORRT_RTX), False),
    ],
)
def test_who_needs_the_plugin(tiny_bundle, installed, needed):
    assert needs_plugin(installed, tiny_bundle) == needed


def test_an_int8_cache_needs_it_always(fp16):
    assert all(needs_plugin(library(version), fp16) for version in ("10.3.0.26", "10.15.1", "11.4.0.106"))
    with pytest.raises(
        BackendError, match=r"cache is int8, .* of TensorRT-RTX .* --kv-cache float, or build with Tens"
    ):
        needs_plugin(library("1.7.1.116", TENSORRT_RTX), fp16)


@pytest.fixture(scope="module")
def fp16(tmp_path_factory):
    """A bundle with heads that the plugin has kernels for, in 4-bit blocks beside float16, with an int8 cache."""
    from support.random_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("fp16")
    changes = {"hidden_size": 256, "kv_channels": 64, "intermediate_size": 512}
    path = write_checkpoint(folder / "checkpoint", raw=config_dict({"output_dim": 256}, **changes), seed=5)
    precision = ExportPrecision.choose("int4", target="gpu", kv_cache="int8")
    return export(path, folder / "bundle", precision=precision, check=False)


def test_blocks_raise_the_opset(fp16, tmp_path):
    model = onnx.load_model_from_string(PluginLowering(fp16, "decoder.onnx", tmp_path).decoder(CAPACITY))
    assert model.opset_import[0].version == 21
    assert {node.op_type for node in model.graph.node} <= OPERATORS


def test_a_missing_plugin(fp16, tmp_path):
    message = r"TensorRT {} has no cache layers of its own for an int8 cache .* --plugin FILE .*jetson\.md.* float\.$"
    for version in ("10.3.0.26", "11.4.0.106"):
        with pytest.raises(BackendError, match=message.format(version)):
            install_plugin(library(version), fp16, None, tmp_path)
    with pytest.raises(BackendError, match=r"cannot read the plugin .*nothing\.so"):
        install_plugin(library(), fp16, tmp_path / "nothing.so", tmp_path)


def test_a_model_that_the_plugin_has_no_kernels_for(bundle, tmp_path):
    with pytest.raises(BackendError, match=r"this decoder is fp32 with heads of 32; export it with --target gpu"):
        install_plugin(library(), bundle, tmp_path / "plugin.so", tmp_path)


class Recorder:
    """Stands in for TensorRT 10.3: notes the plugins that are loaded and the settings of every build."""

    def __init__(self):
        self.loaded, self.timings = [], []
        self.BuilderFlag = SimpleNamespace(TF32="tf32")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.__version__ = "10.3.0.26"
        self.IProgressMonitor = object

    def get_plugin_registry(self):
        return SimpleNamespace(
            load_library=lambda path: self.loaded.append(path) or "handle",
            get_creator=lambda name, version, space: (name, version, space) == ("KVCacheAttention", "2", "") or None,
        )

    def create_builder_config(self):
        return SimpleNamespace(
            clear_flag=lambda flag: None,
            add_optimization_profile=lambda profile: None,
            create_timing_cache=lambda data: data,
            set_timing_cache=lambda cache, force: self.timings.append(cache) or cache == b"",
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
        )

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda *_: None)


def test_a_plan_with_the_plugin(fp16, tmp_path, monkeypatch):
    recorder, models = Recorder(), {}
    installed = Library(TENSORRT, recorder, SimpleNamespace(lines=[]))

    def network(library, model, path):
        assert recorder.loaded  # the parser looks the op up
        models[path.name] = onnx.load_model_from_string(model)
        return SimpleNamespace(builder=recorder)

    def engine(network, config, path):
        path.write_bytes(path.name.encode())
        return True

    monkeypatch.setattr(build_module, "installed_libraries", lambda: [installed])
    monkeypatch.setattr(build_module, "local_gpu", lambda: 87)
    monkeypatch.setattr(build_module, "Network", network)
    monkeypatch.setattr(build_module, "write_engine", engine)
    plugin = tmp_path / "libqwenvl_tensorrt_plugin.so"
    plugin.write_bytes(b"a library")
    plan = build_module.build(fp16, "orin", PlanLimits(CAPACITY, 1, 1, 16), plugin=plugin)
    # This TensorRT says that the timings of the picture side are of another GPU; the decoder goes on with new ones.
    assert recorder.timings == [b"", b"timings", b""]
    assert plan == Plan.open(fp16, "orin")
    assert (plan.manifest.dialect, plan.manifest.plugin) == ("plugin", "libqwenvl_tensorrt_plugin.so 2")
    assert set(plan.manifest.files) == {VISION_PLAN, DECODER_PLAN, plugin.name}
    assert Path(recorder.loaded[0]).name == plugin.name
    assert sum(node.op_type == "KVCacheAttention" for node in models["decoder.onnx"].graph.node) == 2
    assert models["vision.onnx"].opset_import[0].version == 20
    raw = json.loads((plan.path / "plan.json").read_text())
    (plan.path / "plan.json").write_text(json.dumps(raw | {"plugin": "../evil.so 1"}))
    with pytest.raises(BundleError, match=r"must list vision.plan and decoder.plan and \.\./evil.so in"):
        Plan.open(fp16, "orin")
