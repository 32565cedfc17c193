"""The layer list of a verbose build, in the words of TensorRT-RTX 1.7.1."""

from __future__ import annotations

from qwenvl_edge_export.tensorrt.engine_layers import read_layers, share

FORMAT = "Strides: [1], StrideOrder: [0], Datatype: {dtype}, Format: (Linear) Row major linear format }}"


def tensor(name, shape, dtype):
    return f"{{ Name: {name}, Dimensions: [{shape}], " + FORMAT.format(dtype=dtype)


def line(name, kind, inputs=(), constants=(), outputs=()):
    parts = [" , ".join(tensor(*each) for each in group) for group in (inputs, constants, outputs)]
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {parts[0]}], Constants: [ {parts[1]}], Outputs: [ {parts[2]}], "
        "TacticName: , StreamId: 0, Metadata: "
    )


KEY = ("present.0.key", "1,4,256,64", "Half")
ROWS = ("rows", "-1,256", "Half")
LINES = {
    "copy": line("__myl_ReshTran_myl0_4", "kgen", [KEY], (), [("temporary", "4,64,256", "Half")]),
    "copy in another profile": line(
        "__myl_ReshMove_myl1_5", "kgen", [("present.0.value [profile 1]", "1,4,256,64", "Half")], (), [ROWS]
    ),
    "attention": line("_gemv_mha_v1_myl0_6", "kgen", [("q", "1,4,1,64", "Half"), KEY], (), [ROWS]),
    "write": line("__myl_Scat_myl0_3", "kgen", [("past_key_values.0.key", "1,4,256,64", "Half")], (), [KEY]),
    "int4 product": line(
        "__myl_ReplCastMulCastFc_myl0_2",
        "runtime_fusion",
        [ROWS],
        [("w", "256,768", "Int4"), ("scales", "2,768", "Half")],
        [ROWS],
    ),
    "int8 product": line("Gemm_51_myl0_6", "gemm", [("x", "-1,256", "Int8")], [("w", "256,256", "Int8")], [ROWS]),
    "mixed product": line("__myl_CastMulCastFc_myl0_9", "runtime_fusion", [ROWS], [("w", "512,256", "Int8")], [ROWS]),
    "widening": line(
        "__myl_CastMulCastReshTranReshSlicSlicSlicConc_myl0_2",
        "kgen",
        (),
        [("s", "1,768", "Half"), ("w", "256,768", "Int8")],
        [("wide", "768,256", "Half")],
    ),
    "norm": line("__myl_MulMeanSqrt_myl0_1", "kgen", [ROWS], [("w", "1,256", "Half")], [ROWS]),
}


def read():
    log = ["3 Engine generation completed in 13 seconds.", "Layers:\n" + "\n".join(LINES.values()), "Bindings:"]
    return dict(zip(LINES, read_layers(log), strict=True))


def test_what_is_wasteful():
    layers = read()
    assert [name for name, layer in layers.items() if layer.copies_cache] == ["copy", "copy in another profile"]
    assert [name for name, layer in layers.items() if layer.widens_weight] == ["widening"]
    assert {name for name, layer in layers.items() if layer.is_product} == {
        "int4 product",
        "int8 product",
        "mixed product",
    }
    assert [name for name, layer in layers.items() if layer.multiplies_integers] == ["int8 product"]
    assert [name for name, layer in layers.items() if layer.multiplies("Int4")] == ["int4 product"]
    assert {name for name, layer in layers.items() if layer.profile == 1} == {"copy in another profile"}


def test_tensors_are_read_whole():
    assert [(t.name, t.shape, t.dtype) for t in read()["int4 product"].constants] == [
        ("w", (256, 768), "Int4"),
        ("scales", (2, 768), "Half"),
    ]
    assert read()["copy in another profile"].inputs[0].name == "present.0.value"


def test_a_log_without_the_list_has_no_layers():
    assert read_layers(["Engine generation completed."]) == []
    assert share([], []) == 1.0
