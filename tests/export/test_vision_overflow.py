"""What float16 overflows in on the picture side, by figures: every operator rounds to its type, as a GPU's kernels do.

ONNX's reference evaluator computes each node in NumPy's type of its inputs, where ONNX Runtime's CPU would widen.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from support.random_checkpoint import config_dict, random_tensors, write_checkpoint

pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")

from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.tensorrt.plugin_lowering import PluginLowering

OUTLIER = 400.0  # large vision transformers keep single channels at some hundreds from the first blocks on


class LayerNormalization(OpRun):
    """In the type of its inputs, sums of squares included."""

    op_domain = ""

    def _run(self, x, scale, bias, axis=-1, epsilon=1e-5, stash_type=1):
        deviation = x - x.mean(axis, dtype=x.dtype, keepdims=True)
        variance = (deviation * deviation).mean(axis, dtype=x.dtype, keepdims=True)
        return (deviation / np.sqrt(variance + x.dtype.type(epsilon)) * scale + bias,)


class PlainLowering(PluginLowering):
    """Everything in float16, norms too."""

    def _widen_norms(self):
        pass


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """Bundles of one checkpoint whose activations have an outlier, in fp32 and fp16; pictures; fp32's features."""
    folder, raw = tmp_path_factory.mktemp("tower"), config_dict()
    tensors = random_tensors(raw, seed=3)
    tensors["transformer.visual.ln_pre.weight"][7] = OUTLIER
    checkpoint = write_checkpoint(folder / "checkpoint", raw=raw, tensors=tensors)
    bundles = {
        name: export(checkpoint, folder / name, precision=ExportPrecision.choose(name, target="gpu"), check=False)
        for name in ("fp32", "fp16")
    }
    size = bundles["fp32"].manifest.model.image_size
    pictures = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)}
    session = ort.InferenceSession(bundles["fp32"].file("vision.onnx"), providers=["CPUExecutionProvider"])
    return bundles, pictures, session.run(None, pictures)[0]


def features(lowering, bundle, folder, pictures):
    """The features of the lowered fp16 graph, and the types of the nodes whose results hold NaN or infinity."""
    model = onnx.load_model_from_string(lowering(bundle, "vision.onnx", folder).vision())
    onnx.load_external_data_for_model(model, str(bundle.path))
    names = [name for node in model.graph.node for name in node.output]
    types = {node.output[0]: node.op_type for node in model.graph.node}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "image_features")
    evaluator = ReferenceEvaluator(model, new_ops=[LayerNormalization])
    with np.errstate(all="ignore"):
        found = dict(zip(evaluator.output_names, evaluator.run(None, pictures), strict=True))
    broken = [types[name] for name in names if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all()]
    return found["image_features"], broken


def error(found, expected):
    """The largest difference, as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_norms_in_float16_overflow_and_in_float32_do_not(tower, tmp_path):
    """The sum of squares becomes infinite and what is divided by it zero: wrong features, and no NaN to see it by."""
    bundles, pictures, expected = tower
    (tmp_path / "plain").mkdir()
    (tmp_path / "widened").mkdir()
    plain, _ = features(PlainLowering, bundles["fp16"], tmp_path / "plain", pictures)
    found, broken = features(PluginLowering, bundles["fp16"], tmp_path / "widened", pictures)
    assert not broken  # nor do the scores and the softmax of attention, which stay in float16
    assert error(found, expected) < 0.01 and error(plain, expected) > 0.1
