"""Checkpoints quantized by GPTQ and AWQ: the floats they stand for, and their integers where a bundle can hold them."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
import torch

from qwenvl_edge.backends.onnxruntime.cpu import OnnxRuntimeBackend
from qwenvl_edge.errors import CheckpointError, QwenVLError
from qwenvl_edge_export.checkpoint.importing import plan_import
from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.export import export
from qwenvl_edge_export.options import ExportPrecision
from support.decoding import rotary
from support.dialects import DIALECTS
from support.quantized_checkpoint import CONFIG, LAYERS, Layout, bit_stream, quantized_layer, quantized_tensors
from support.random_checkpoint import write_checkpoint
from support.reference import load_model

INT4 = ExportPrecision.choose("int4", vision="fp32", head="fp32")
INT8 = ExportPrecision.choose("int8", vision="fp32", head="fp32")
PUBLISHED = Layout()
LAYOUTS = {
    "published": PUBLISHED,
    "v2": Layout(v2=True),
    "no g_idx": Layout(g_idx=False),
    "no zero points": Layout(qzeros=False),
    "act-order": Layout(desc_act=True, group=32),
    "asymmetric": Layout(sym=False, group=64),
    "asymmetric v2": Layout(sym=False, v2=True, group=32),
    "one group": Layout(group=-1),
    "groups of 16": Layout(group=16),
    "2 bits": Layout(bits=2, group=32),
    "3 bits": Layout(bits=3, group=64),
    "3 bits, asymmetric": Layout(bits=3, group=32, sym=False),
    "8 bits": Layout(bits=8),
    "8 bits, asymmetric": Layout(bits=8, sym=False),
    "bfloat16 scales": Layout(scales=torch.bfloat16),
    "AWQ": Layout("awq", sym=False),
    "AWQ, groups of 64": Layout("awq", group=64, sym=False),
}
# Layouts whose integers go as they are into blocks of 4 bits, and into those of 8.
IN_INT4 = set(LAYOUTS) - {
    *("act-order", "asymmetric", "asymmetric v2", "groups of 16", "8 bits", "8 bits, asymmetric", "AWQ"),
    "AWQ, groups of 64",
}
IN_INT8 = set(LAYOUTS) - {"act-order", "groups of 16", "8 bits, asymmetric"}


def written(folder, layout):
    return write_checkpoint(folder / "checkpoint", raw=layout.config, tensors=quantized_tensors(layout)[0], shards=3)


@pytest.fixture(scope="module", params=LAYOUTS)
def opened(request, tmp_path_factory):
    layout = LAYOUTS[request.param]
    return request.param, layout, Checkpoint.open(written(tmp_path_factory.mktemp("layout"), layout))


def test_the_floats_are_those_that_the_integers_stand_for(opened):
    _, layout, checkpoint = opened
    for layer, expected in quantized_tensors(layout)[1].items():
        np.testing.assert_allclose(checkpoint.tensor(f"{layer}.weight"), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize(("precision", "whole"), [(INT4, IN_INT4), (INT8, IN_INT8)], ids=["int4", "int8"])
def test_integers_are_taken_over_where_the_form_can_hold_them(opened, precision, whole):
    name, layout, checkpoint = opened
    plan = plan_import(checkpoint, precision)
    assert plan.whole == (name in whole)
    (note,) = plan.notes(calibrated=False)
    assert ("taken over as they are" in note) == plan.whole
    assert "AWQ" in note if layout.method == "awq" else "GPTQ" in note
    floats = quantized_tensors(layout)[1]
    for weight in checkpoint.family.decoder.linear_weights():
        found = plan.integers(weight)
        assert (found is not None) == (plan.whole and weight.name != "lm_head.weight")
        if found is not None:
            np.testing.assert_allclose(found.floats(), floats[weight.name.removesuffix(".weight")], rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("act-order", r"the order of its inputs \(desc_act\): 10 of its 10 quantized matrices"),
        ("asymmetric", r"its zero points .*--precision int8 holds all of them as they are"),
        ("AWQ", r"its zero points .*--precision int8 holds all of them as they are"),
        ("groups of 16", "its groups of 16 inputs"),
        ("8 bits", "its 8 bits"),
    ],
)
def test_the_note_says_what_int4_cannot_hold(tmp_path, name, words):
    plan = plan_import(Checkpoint.open(written(tmp_path, LAYOUTS[name])), INT4)
    assert re.search(words, plan.notes(calibrated=False)[0])


@pytest.mark.parametrize("block", [32, 64])
def test_a_block_size_that_was_asked_for_divides_the_groups(tmp_path, block):
    checkpoint = Checkpoint.open(written(tmp_path, PUBLISHED))
    precision = ExportPrecision.choose("int4", vision="fp32", block=block)
    plan = plan_import(checkpoint, precision)
    assert plan.whole and plan.precision.decoder.block == block
    floats = quantized_tensors(PUBLISHED)[1]["transformer.h.0.mlp.w1"]
    weight = next(each for each in checkpoint.family.decoder.linear_weights() if "h.0.mlp.w1" in each.name)
    np.testing.assert_allclose(plan.integers(weight).floats(), floats, rtol=2e-7, atol=0)


def test_three_bits_run_across_words():
    values = np.arange(64).reshape(64, 1) % 8
    words = bit_stream(values, 3)[:, 0].view(np.uint32)
    whole = sum(int(word) << 32 * place for place, word in enumerate(words))
    assert [whole >> 3 * place & 7 for place in range(64)] == values[:, 0].tolist()


def test_a_symmetric_record_settles_which_zero_points_are_meant(tmp_path):
    """Programs that wrote v2 under the name of v1: symmetric weights have their zero in the middle either way."""
    layout = Layout(v2=True)
    raw = layout.config
    raw["quantization_config"]["checkpoint_format"] = "gptq"
    folder = write_checkpoint(tmp_path / "checkpoint", raw=raw, tensors=quantized_tensors(layout)[0])
    name, expected = next(iter(quantized_tensors(layout)[1].items()))
    np.testing.assert_allclose(Checkpoint.open(folder).tensor(f"{name}.weight"), expected, rtol=2e-7)


def test_a_checkpoint_without_a_record_is_read_by_its_shapes(tmp_path):
    for layout in (PUBLISHED, Layout("awq", sym=False, group=64)):
        folder = tmp_path / layout.method
        write_checkpoint(folder, raw=CONFIG, tensors=quantized_tensors(layout)[0])
        name, expected = next(iter(quantized_tensors(layout)[1].items()))
        np.testing.assert_allclose(Checkpoint.open(folder).tensor(f"{name}.weight"), expected, rtol=2e-7)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_single_layers_of_other_bits(tmp_path, method):
    """`dynamic` and `extra_config` give layers bits and groups of their own; the shapes tell."""
    tensors, floats = quantized_tensors(PUBLISHED)
    layer = LAYERS[3]
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"{layer}.{part}"]
    other = Layout(method, bits=8 if method == "gptq" else 4, group=32, sym=False)
    parts, floats[layer], _ = quantized_layer((256, 128), other, np.random.default_rng(5))
    tensors |= {f"{layer}.{part}": torch.as_tensor(values) for part, values in parts.items()}
    raw = PUBLISHED.config
    raw["quantization_config"]["sym"] = False
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", raw=raw, tensors=tensors))
    for name, expected in floats.items():
        np.testing.assert_allclose(checkpoint.tensor(f"{name}.weight"), expected, rtol=2e-7, atol=0)
    plan = plan_import(checkpoint, INT4)
    assert [name for name, obstacle in plan.obstacles.items() if obstacle] == [f"{layer}.weight"]
    assert plan.method == "imported, rtn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return written(tmp_path_factory.mktemp("imported"), PUBLISHED)


@pytest.fixture(scope="module")
def bundle(checkpoint):
    return export(checkpoint, checkpoint.with_name("bundle"), precision=INT4)


def test_integers_and_scales_are_not_changed(checkpoint, bundle):
    tensors = quantized_tensors(PUBLISHED)[0]
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
    assert (bundle.manifest.precision.method, bundle.manifest.precision.block_size) == ("imported", 128)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_bundle_computes_what_the_checkpoint_computes(checkpoint, bundle, dialect):
    assert_same_logits(checkpoint, bundle, dialect)


def assert_same_logits(checkpoint, bundle, dialect):
    embeds = bundle.embedding[np.random.default_rng(0).integers(0, 400, (1, 12))]
    with torch.no_grad():
        expected = load_model(Checkpoint.open(checkpoint)).decode(torch.from_numpy(embeds))[0].numpy()
    backend = OnnxRuntimeBackend(bundle, threads=1, dialect=dialect)
    every = np.arange(12)[None]
    found = backend.decode(backend.new_cache(1, 12), embeds, rotary(backend, [0], 12), np.zeros(1, np.int64), every)
    tolerance = 1e-4 if dialect == "standard" else 5e-2  # MatMulNBits rounds the activations to 8 bits
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_awq_is_exact_in_8_bits(tmp_path):
    source = written(tmp_path, LAYOUTS["AWQ"])
    notes: list[str] = []
    bundle = export(source, tmp_path / "bundle", precision=INT8, note=notes.append)
    assert bundle.manifest.precision.method == "imported"
    (note,) = notes
    assert "(AWQ, 4 bits, groups of 128); its integers and scales are taken over as they are." in note
    assert_same_logits(source, bundle, "standard")


@pytest.mark.parametrize("name", ["published", "act-order", "one group", "AWQ"])
def test_other_precisions_take_the_floats(tmp_path, name):
    notes: list[str] = []
    source, floats = written(tmp_path, LAYOUTS[name]), ExportPrecision.choose("fp32")
    found = export(source, tmp_path / "bundle", precision=floats, note=notes.append)
    assert found.manifest.parity["passed"]
    assert found.manifest.precision.method == ""
    assert "the floats that it stands for are computed" in notes[0]


def test_calibrating_it_again_is_refused(checkpoint, tmp_path):
    with pytest.raises(QwenVLError, match="is quantized already; export it without --calibrate"):
        export(checkpoint, tmp_path / "bundle", precision=INT4, calibration=True)


def broken(part, change):
    tensors = quantized_tensors(PUBLISHED)[0]
    change(tensors, f"transformer.h.1.mlp.w2.{part}")
    return tensors


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        ("g_idx", lambda t, n: t.__setitem__(n, t[n] + 1), r"mlp\.w2\.g_idx names groups beyond the 1"),
        (
            "g_idx",
            lambda t, n: t.__setitem__(n, t[n][:5].clone()),
            r"mlp\.w2\.g_idx is \[5\] of int32, which",
        ),
        ("qzeros", lambda t, n: t.__setitem__(n, t[n].float()), r"mlp\.w2\.qzeros is .* of float32, which fits no"),
        ("qweight", lambda t, n: t.__setitem__(n, t[n][:-1].clone()), r"mlp\.w2\.qweight is \[15, 256\] of int32"),
        ("qweight", lambda t, n: t.__setitem__(n, t[n][:, :-1].clone()), r"mlp\.w2\.qweight is \[16, 255\]"),
        ("scales", lambda t, n: t[n].fill_(float("nan")), r"h\.1\.mlp\.w2\.scales holds NaN"),
        ("scales", lambda t, n: t.pop(n), r"lacks transformer\.h\.1\.mlp\.w2\.scales"),
        ("bias", lambda t, n: t[n].fill_(1), r"transformer\.h\.1\.mlp\.w2\.bias .* is not zero"),
    ],
)
def test_what_is_broken_is_named(tmp_path, part, change, match):
    source = write_checkpoint(tmp_path / "checkpoint", raw=PUBLISHED.config, tensors=broken(part, change))
    with pytest.raises(CheckpointError, match=match):
        export(source, tmp_path / "bundle", precision=INT4)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "by bitsandbytes, which cannot be imported"),
        ({"load_in_8bit": True}, "by bitsandbytes"),
        ({"quant_method": "exl2", "bits": 4.0}, r"by EXL2 \(ExLlamaV2\)"),
        ({"quant_method": "fp8"}, "by FP8"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "by compressed-tensors"),
        ({"quant_method": "awq", "version": "gemv", "bits": 4}, "to 4 bits by AWQ in its GEMV layout"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "by GPTQ in the layout of marlin"),
        ({"quant_method": "brand-new"}, "by brand-new"),
    ],
)
@pytest.mark.parametrize("place", ["config.json", "quantize_config.json"])
def test_other_methods_are_named_in_one_sentence(tmp_path, record, words, place):
    tensors, _ = quantized_tensors(PUBLISHED)
    raw = CONFIG | ({"quantization_config": record} if place == "config.json" else {})
    folder = write_checkpoint(tmp_path / "checkpoint", raw=raw, tensors=tensors)
    if place != "config.json":
        (folder / place).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint.open(folder)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("absmax", "bitsandbytes"),
        ("q_perm", "EXL2"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale", "FP8"),
    ],
)
def test_other_methods_are_known_by_their_tensors(tmp_path, part, words):
    tensors, _ = quantized_tensors(PUBLISHED)
    tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in ("qweight", "qzeros")}
    tensors[f"{LAYERS[0]}.{part}"] = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", raw=CONFIG, tensors=tensors))


def test_a_record_beside_plain_floats_hinders_nothing(small_checkpoint):
    """Fine-tunes with bitsandbytes leave its record in config.json when they save merged floats."""
    folder = small_checkpoint(raw=CONFIG | {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert Checkpoint.open(folder).quantized_form == ""
