"""W8A8 bundles: explicit quantization of weights and activations, by scales that calibration found."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from qwenvl_edge.bundle.contract import STANDARD
from qwenvl_edge.errors import BundleError, QwenVLError
from qwenvl_edge_export import bundle_writer
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.graphs.builder import FLOAT, GraphBuilder
from qwenvl_edge_export.graphs.data_file import DataFile
from qwenvl_edge_export.graphs.linear import Linear
from qwenvl_edge_export.graphs.roles import LinearRole, Weight, stored
from qwenvl_edge_export.graphs.weight_layout import vision_layout
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.quantization import layer_calibration
from qwenvl_edge_export.quantization import results as kept
from qwenvl_edge_export.weight_formats import InputScales
from support.dialects import RUNNABLE
from support.random_checkpoint import write_checkpoint

W8A8 = ExportPrecision.choose("w8a8")
LAYER = "transformer.h.1.mlp.w1.weight"
GRAPHS = ("vision.onnx", "decoder.onnx", "decoder.ort.onnx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("w8a8") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint):
    return export(checkpoint, checkpoint.with_name("bundle"), precision=W8A8)


def graph_of(bundle, name):
    return onnx.load(bundle.file(name), load_external_data=False).graph


def layer_graph(checkpoint, folder, given):
    """A graph of one linear layer with bias, in fp32."""
    bias = Weight("bias", (96,), lambda _: torch.linspace(-1, 1, 96))
    role = LinearRole(stored(LAYER, 96, 128), bias)
    layout = vision_layout([role], W8A8.decoder, lambda _: given)
    g = GraphBuilder("layer", layout, 23)
    x = g.input("x", FLOAT, ["M", 128])
    g.output(Linear(g, STANDARD)(x, role), "y", FLOAT, ["M", 96])
    ir.save(g.build(), folder / "layer.onnx")
    DataFile(folder, layout).write(Checkpoint.open(checkpoint).tensor, lambda _: None)
    return ort.InferenceSession(folder / "layer.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("static", [True, False])
def test_a_layer_computes_what_numpy_does_in_integers(checkpoint, tmp_path, static):
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 128)).astype(np.float32) * np.where(np.arange(128) == 5, 30, 1).astype(np.float32)
    factors = random.uniform(0.5, 4, 128).astype(np.float32)
    scale = np.float32(np.abs(x / factors).max() / 127 * 0.9)  # a few values are clipped
    given = InputScales(torch.from_numpy(factors), float(scale)) if static else None
    (found,) = layer_graph(checkpoint, tmp_path, given).run(None, {"x": x})

    weight = Checkpoint.open(checkpoint).tensor(LAYER).numpy() * (factors if static else 1)
    scales = np.abs(weight).max(axis=1) / 127
    integers = np.rint(weight / scales[:, None]).astype(np.int64)
    bias = np.linspace(-1, 1, 96)
    if static:
        inputs = np.clip(np.rint(x * (1 / factors) / scale), -128, 127).astype(np.int64)
        expected = (inputs @ integers.T) * (scales * scale) + bias
    else:
        expected = x @ (integers * scales[:, None]).T + bias
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_weights_are_signed_integers_with_a_scale_a_row(bundle):
    """The form TensorRT asks for: zero points of zero, one scale for activations, one an output row for weights."""
    for name in GRAPHS:
        graph = graph_of(bundle, name)
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        quantizers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(quantizers) >= 3
        for node in quantizers:
            scale = tensors[node.input[1]]
            if (weight := tensors.get(node.input[0])) is None:
                assert (list(scale.dims), node.input[2]) == ([], "zero.static")
            else:
                assert weight.data_type == onnx.TensorProto.INT8
                assert list(scale.dims) == [weight.dims[0]]
                assert [attribute.i for attribute in node.attribute] == [0]
        assert tensors["zero.static"].data_type == onnx.TensorProto.INT8
        assert {node.op_type for node in graph.node}.isdisjoint({"MatMulNBits", "MatMulInteger"})


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_graphs_are_valid(bundle, checkpoint, tmp_path, target):
    if target == "gpu":
        bundle = export(checkpoint, tmp_path / "gpu", precision=ExportPrecision.choose("w8a8", target="gpu"))
    for name in GRAPHS:
        onnx.checker.check_model(str(bundle.file(name)), full_check=name != "decoder.ort.onnx")
    assert bundle.manifest.parity["passed"]
    assert {row["graph"] for row in bundle.manifest.parity["stages"]} == {"vision", *RUNNABLE}


def test_every_linear_layer_is_calibrated(bundle):
    tensors = [tensor.name for graph in GRAPHS for tensor in graph_of(bundle, graph).initializer]
    names = {name.removesuffix(".int8") for name in tensors if name.endswith(".int8")}
    found = bundle.manifest.sensitivity
    assert set(found) == names
    assert len(names) == 2 * 4 + 5 + 2 * 5 + 1
    assert all(0 < each["calibrated"] <= max(each["rtn"], 0.02) for each in found.values())
    assert bundle.manifest.precision == W8A8.describe("smoothquant")
    assert not bundle.path.with_name("bundle.calibration").exists()


def test_layers_that_are_kept_stay_floats(checkpoint, tmp_path):
    kept = ExportPrecision.choose("w8a8", keep=["*.h.0.*", "lm_head.weight", "*attn_pool*"])
    found = export(checkpoint, tmp_path / "kept", precision=kept)
    assert not any("h.0." in name or "lm_head" in name or "attn_pool" in name for name in found.manifest.sensitivity)
    assert found.manifest.parity["passed"]


def test_vision_alone(checkpoint, tmp_path):
    """Beside a decoder that is rounded, only the picture side is calibrated."""
    mixed = ExportPrecision.choose("int8", vision="w8a8")
    found = export(checkpoint, tmp_path / "mixed", precision=mixed)
    sensitivity = found.manifest.sensitivity
    assert sensitivity and all(name.startswith("transformer.visual") for name in sensitivity)
    assert (found.manifest.precision.vision, found.manifest.precision.method) == ("w8a8", "rtn")
    both = export(checkpoint, tmp_path / "both", precision=mixed, calibration=True, check=False)
    assert both.manifest.precision.method == "gptq"
    assert both.manifest.files["vision.data"] == found.manifest.files["vision.data"]
    assert any(name.startswith("transformer.h.") for name in both.manifest.sensitivity)


@pytest.mark.parametrize("stage", ["layer", "write"])
def test_an_interrupted_calibration_goes_on(checkpoint, bundle, tmp_path, monkeypatch, stage):
    target, seen, smooth = tmp_path / "bundle", [], layer_calibration.smooth

    def counted(*arguments):
        seen.append(1)
        if stage == "layer" and len(seen) == 6:  # in the second layer: each has four groups
            raise KeyboardInterrupt
        return smooth(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(layer_calibration, "smooth", counted)
        if stage == "write":
            patch.setattr(bundle_writer, "vision_layout", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, target, precision=W8A8, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.calibration"]
    seen.clear()
    monkeypatch.setattr(layer_calibration, "smooth", lambda *arguments: seen.append(1) or smooth(*arguments))
    resumed = export(checkpoint, target, precision=W8A8, check=False)
    assert len(seen) == (5 if stage == "layer" else 0)
    assert resumed.manifest.files == bundle.manifest.files
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("calls", [1, 2, 3])  # the picture side, and the two layers
def test_a_disk_that_fills_while_calibrating(checkpoint, bundle, tmp_path, monkeypatch, calls):
    save, seen = kept.save_file, []

    def filling(*arguments):
        seen.append(1)
        if len(seen) == calls:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(*arguments)

    monkeypatch.setattr(kept, "save_file", filling)
    with pytest.raises(BundleError, match=r"calibration cannot write .*No space left on device"):
        export(checkpoint, tmp_path / "bundle", precision=W8A8, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.calibration"] * (calls > 1)
    assert not list(tmp_path.rglob("*.partial"))
    resumed = export(checkpoint, tmp_path / "bundle", precision=W8A8, check=False)
    assert resumed.manifest.files == bundle.manifest.files


def test_own_samples(checkpoint, bundle, tmp_path):
    Image.new("RGB", (60, 50), (200, 10, 10)).save(tmp_path / "a.png")
    (tmp_path / "own.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "What?", "answer": "Red."}))
    own = export(checkpoint, tmp_path / "own", precision=W8A8, calibration=tmp_path / "own.jsonl", check=False)
    assert own.manifest.files["vision.data"] != bundle.manifest.files["vision.data"]
    assert own.manifest.files["decoder.data"] != bundle.manifest.files["decoder.data"]


def test_samples_without_a_picture_cannot_calibrate_the_picture_side(checkpoint, tmp_path):
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "What?", "answer": "Red."}))
    with pytest.raises(QwenVLError, match="none of the calibration samples has a picture"):
        export(checkpoint, tmp_path / "bundle", precision=W8A8, calibration=tmp_path / "own.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.jsonl"]
