from __future__ import annotations

from dataclasses import replace

import pytest

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge_export.options import PRECISIONS, ExportPrecision
from qwenvl_edge_export.weight_formats import Blocks, Rows, StaticRows

HEAD = "lm_head.weight"
LAYER = "transformer.h.0.mlp.w1.weight"
PICTURE = "transformer.visual.transformer.resblocks.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("precision", "target", "vision", "decoder", "embedding"),
    [
        ("fp32", "cpu", ("fp32", "fp32"), ("fp32", "fp32"), "float32"),
        ("fp16", "gpu", ("fp16", "fp16"), ("fp16", "fp16"), "float16"),
        ("bf16", "gpu", ("bf16", "bf16"), ("bf16", "bf16"), "bfloat16"),
        ("int8", "cpu", ("fp32", "int8"), ("fp32", "int8"), "float16"),
        ("int8", "gpu", ("fp16", "w8a8"), ("fp16", "w8a8"), "float16"),
        ("int4", "cpu", ("fp32", "int8"), ("fp32", "int4"), "float16"),
        ("int4", "gpu", ("fp16", "fp16"), ("fp16", "int4"), "float16"),
        ("w8a8", "cpu", ("fp32", "w8a8"), ("fp32", "w8a8"), "float16"),
        ("w8a8", "gpu", ("fp16", "w8a8"), ("fp16", "w8a8"), "float16"),
    ],
)
def test_defaults_of_the_targets(precision, target, vision, decoder, embedding):
    chosen = ExportPrecision.choose(precision, target=target)
    assert (chosen.vision.compute, chosen.vision.weights) == vision
    assert (chosen.decoder.compute, chosen.decoder.weights) == decoder
    assert chosen.embedding == embedding


@pytest.mark.parametrize(("target", "precision"), [("cpu", "int8"), ("gpu", "fp16")])
def test_without_a_precision_the_target_decides(target, precision):
    unasked, asked = ExportPrecision.choose(target=target), ExportPrecision.choose(precision, target=target)
    assert replace(unasked, is_default=False) == asked
    assert unasked.is_default == (target == "cpu")


def test_formats_of_layers():
    chosen = ExportPrecision.choose("int4", block=64, keep=["*.h.0.*"])
    assert chosen.vision.format(PICTURE) == Rows()
    assert chosen.decoder.format(LAYER) is None
    assert chosen.decoder.format(LAYER.replace("h.0", "h.1")) == Blocks(4, 64)
    assert chosen.decoder.format(HEAD, head=True) == Blocks(8, 64)
    assert ExportPrecision.choose("int4", head="int4").decoder.format(HEAD, head=True) == Blocks(4, 128)
    assert ExportPrecision.choose("int4", head="fp32").decoder.format(HEAD, head=True) is None
    static = ExportPrecision.choose("w8a8", head="int8", keep=["*.h.0.*"])
    assert static.vision.format(PICTURE) == StaticRows()
    assert static.decoder.format(LAYER) is None
    assert static.decoder.format(LAYER.replace("h.0", "h.1")) == StaticRows()
    assert static.decoder.format(HEAD, head=True) == Blocks(8, 128)
    assert ExportPrecision.choose("w8a8").decoder.format(HEAD, head=True) == StaticRows()
    for name in PRECISIONS[:3]:
        assert ExportPrecision.choose(name, target="gpu").decoder.format(LAYER) is None


@pytest.mark.parametrize(
    ("options", "inputs", "block"),
    [
        ({}, (4096, 11008), 128),
        ({"target": "gpu"}, (4096, 11008), 128),
        ({}, (256, 192), 64),
        ({}, (128, 96), 32),
        ({}, (128, 128, 40), 128),
        ({}, (96, 96, 128), 32),
        ({"block": 64}, (128, 96), 64),
        ({"block": 32}, (256, 128), 32),
    ],
)
def test_blocks_are_as_large_as_the_layers_allow_unless_asked_for(options, inputs, block):
    chosen = ExportPrecision.choose("int4", **options).fitted({f"layer{i}": (8, n) for i, n in enumerate(inputs)})
    assert chosen.decoder.format(LAYER) == Blocks(4, block)


def test_layers_that_no_block_divides_stay_floats():
    shapes = {f"h.{i}.{part}.weight": (8, n) for i in range(3) for part, n in (("up", 128), ("down", 40))}
    chosen = ExportPrecision.choose("int4", keep=["a"]).fitted(shapes)
    assert chosen.decoder.format("h.2.down.weight") is None
    assert chosen.decoder.format("h.2.up.weight") == Blocks(4, 128)
    assert chosen.describe("rtn").kept == "a, h.*.down.weight"
    asked = ExportPrecision.choose("int4", block=32).fitted(shapes)
    assert asked.decoder.format("h.2.down.weight") == Blocks(4, 32)  # refused when it is laid out
    assert ExportPrecision.choose("fp32").fitted(shapes).decoder.keep == ()


def test_the_manifest_says_what_was_chosen():
    found = ExportPrecision.choose("int4", vision="fp32", keep=["a", "b"]).describe("rtn")
    assert (found.vision, found.decoder, found.lm_head, found.block_size, found.method, found.kept) == (
        *("fp32", "int4", "int8", 128, "rtn"),
        "a, b",
    )
    assert found.compute == {"vision": "fp32", "decoder": "fp32"}
    static = ExportPrecision.choose("w8a8").describe("smoothquant")
    assert (static.vision, static.lm_head, static.block_size, static.method) == ("w8a8", "w8a8", 0, "smoothquant")
    plain = ExportPrecision.choose("fp16").describe("rtn")
    assert (plain.block_size, plain.method) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (("int3",), {}, 'precision "int3" is not one of fp32, fp16, bf16, int8, int4, w8a8'),
        (("int4",), {"vision": "int4"}, 'vision precision "int4"'),
        (("int4",), {"target": "gpu", "block": 32}, "TensorRT takes 4-bit weights in blocks of 64 or 128, not 32"),
        (("int4",), {"block": 48}, 'block size "48" is not one of 32, 64, 128'),
        (("int4",), {"target": "tpu"}, 'target "tpu" is not one of cpu, gpu'),
        (("int4",), {"head": "w8a8"}, 'head precision "w8a8" is not one of fp32, fp16, bf16, int8, int4'),
        (
            ("bf16",),
            {},
            "nothing here computes bfloat16 on a CPU; choose --precision int8 or fp32, or say --target gpu",
        ),
        (("int8",), {"vision": "bf16"}, "nothing here computes bfloat16 on a CPU"),
        (("fp32",), {"head": "int8"}, 'head precision "int8" is not one of fp32'),
    ],
)
def test_unknown_choices(arguments, options, match):
    with pytest.raises(QwenVLError, match=match):
        ExportPrecision.choose(*arguments, **options)
