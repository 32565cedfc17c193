"""A checkpoint quantized by GPTQ is imported as it is: the same integers, the same scales, the same logits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.decoding import rotary
from support.dialects import DIALECTS
from support.random_checkpoint import config_dict, random_tensors, write_checkpoint
from support.reference import load_model

GROUP = 128
CONFIG = config_dict(intermediate_size=512)
LAYERS = [
    f"transformer.h.{i}.{name}"
    for i in range(2)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
]
INT4 = ExportPrecision.choose("int4", vision="fp32", head="fp32")


def quantized_tensors(group=GROUP):
    """Float tensors with the decoder's linear layers replaced by the published layout, and those layers' floats."""
    random = np.random.default_rng(0)
    tensors = {name: tensor.half() for name, tensor in random_tensors(CONFIG).items()}
    floats = {}
    for layer in LAYERS:
        outputs, inputs = tensors.pop(f"{layer}.weight").shape
        integers = random.integers(0, 16, (inputs, outputs), dtype=np.int64)
        scales = random.uniform(0.002, 0.02, (inputs // group, outputs)).astype(np.float16)
        packed = sum(integers[j::8] << 4 * j for j in range(8)).astype(np.uint32).view(np.int32)
        tensors[f"{layer}.qweight"] = torch.from_numpy(packed)
        tensors[f"{layer}.qzeros"] = torch.full((inputs // group, outputs // 8), 0x77777777, dtype=torch.int32)
        tensors[f"{layer}.scales"] = torch.from_numpy(scales)
        tensors[f"{layer}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // group
        tensors.setdefault(f"{layer}.bias", torch.zeros(outputs, dtype=torch.float16))
        floats[layer] = ((integers - 8) * scales.astype(np.float32).repeat(group, axis=0)).T
    return tensors, floats


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    return write_checkpoint(folder / "checkpoint", raw=CONFIG, tensors=quantized_tensors()[0], shards=3)


@pytest.fixture(scope="module")
def bundle(checkpoint):
    return export(checkpoint, checkpoint.with_name("bundle"), precision=INT4)


def test_the_reference_has_the_floats_that_the_integers_stand_for(checkpoint):
    model = load_model(Checkpoint.open(checkpoint))
    for layer, expected in quantized_tensors()[1].items():
        np.testing.assert_array_equal(model.get_parameter(f"{layer}.weight"), expected.astype(np.float32))


def test_integers_and_scales_are_not_changed(checkpoint, bundle):
    tensors = quantized_tensors()[0]
    data = bundle.file("decoder.data").read_bytes()
    graph = onnx.load(bundle.file("decoder.ort.onnx"), load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}
    for layer in LAYERS:
        packed, scales = (tensors[f"{layer}.{part}"].numpy() for part in ("qweight", "scales"))
        integers = np.stack([packed.view(np.uint32) >> 4 * j & 15 for j in range(8)], 1).reshape(-1, packed.shape[1]).T
        place, length = (int(places[f"{layer}.weight.int4"][key]) for key in ("offset", "length"))
        found = np.frombuffer(data, np.uint8, length, place).reshape(len(integers), -1)
        np.testing.assert_array_equal(found & 15, integers[:, 0::2])
        np.testing.assert_array_equal(found >> 4, integers[:, 1::2])
        place, length = (int(places[f"{layer}.weight.int4.scales"][key]) for key in ("offset", "length"))
        stored = np.frombuffer(data, "<f4", length // 4, place)
        np.testing.assert_array_equal(stored.reshape(len(integers), -1), scales.T.astype(np.float32))
    assert (bundle.manifest.precision.method, bundle.manifest.precision.block_size) == ("imported", GROUP)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_bundle_computes_what_the_checkpoint_computes(checkpoint, bundle, dialect):
    embeds = bundle.embedding[np.random.default_rng(0).integers(0, 400, (1, 12))]
    with torch.no_grad():
        expected = load_model(Checkpoint.open(checkpoint)).decode(torch.from_numpy(embeds))[0].numpy()
    backend = OnnxRuntimeBackend(bundle, threads=1, dialect=dialect)
    every = np.arange(12)[None]
    found = backend.decode(backend.new_cache(1, 12), embeds, rotary(backend, [0], 12), np.zeros(1, np.int64), every)
    tolerance = 1e-4 if dialect == "standard" else 5e-2  # MatMulNBits rounds the activations to 8 bits
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_other_precisions_take_the_floats(checkpoint, tmp_path):
    found = export(checkpoint, tmp_path / "bundle")
    assert found.manifest.parity["passed"]
    assert found.manifest.precision.method == ""


def test_calibrating_it_again_is_refused(checkpoint, tmp_path):
    with pytest.raises(QwenVLError, match="is quantized already; export it without --calibrate"):
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True)


def broken(part, change):
    tensors = quantized_tensors()[0]
    change(tensors, f"transformer.h.1.mlp.w2.{part}")
    return tensors


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        (
            "qzeros",
            lambda t, n: t[n].fill_(0x66666666),
            r"h\.1\.mlp\.w2\.weight is quantized with zero points other than 8",
        ),
        ("g_idx", lambda t, n: t.__setitem__(n, t[n].flip(0) + 1), r"with inputs out of order"),
        ("scales", lambda t, n: t[n].fill_(float("nan")), r"h\.1\.mlp\.w2\.scales holds NaN"),
        ("scales", lambda t, n: t.pop(n), r"lacks transformer\.h\.1\.mlp\.w2\.scales"),
        ("bias", lambda t, n: t[n].fill_(1), r"transformer\.h\.1\.mlp\.w2\.bias .* is not zero"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path, part, change, match):
    source = write_checkpoint(tmp_path / "checkpoint", raw=CONFIG, tensors=broken(part, change))
    with pytest.raises(CheckpointError, match=match):
        export(source, tmp_path / "bundle", precision=INT4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
