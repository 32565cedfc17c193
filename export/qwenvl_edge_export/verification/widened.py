"""bfloat16 graphs as float32 graphs over the same stored values, so that they can be run where bfloat16 cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qwenvl_edge.bundle.bundle import Bundle

NO_BFLOAT16 = "ONNX Runtime's CPU provider has no bfloat16"
HOW_IT_RAN = "so the graphs ran in float32 on the stored weights"
WIDEN_UP_TO_BYTES = 2 << 30
"""The copy takes twice as much, on disk and for a moment in memory."""


def weight_bytes(bundle: Bundle) -> int:
    """Bytes of the graphs' external files."""
    return sum(info.size for name, info in bundle.manifest.files.items() if name.endswith(".data"))


def widened(bundle: Bundle, folder: Path) -> Bundle:
    """A bundle in `folder` that computes in float32 what `bundle` computes in bfloat16; its manifest is not written."""
    manifest = bundle.manifest
    for name in (manifest.graphs.vision, *manifest.graphs.decoder.values()):
        model = ir.load(bundle.file(name))
        _widen(model.graph)
        ir.save(model, folder / name, external_data=f"{name}.data")
    for name in (manifest.embedding.file, manifest.tokenizer):
        (folder / name).symlink_to(bundle.file(name).resolve())
    precision = dataclasses.replace(manifest.precision, compute=dict.fromkeys(manifest.precision.compute, "fp32"))
    return Bundle(folder, dataclasses.replace(manifest, precision=precision))


def _widen(graph: ir.Graph) -> None:
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.BFLOAT16:
            assert value.const_value is not None  # every weight lies in a file
            wide = value.const_value.numpy().astype(np.float32)
            value.const_value, value.dtype = ir.Tensor(wide, name=value.name), ir.DataType.FLOAT
    for node in graph:
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target is not None and target.value == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
