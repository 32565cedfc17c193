"""A calibration of a small model, and how it is interrupted."""

from qwenvl_edge_export.checkpoint.reader import Checkpoint
from qwenvl_edge_export.options import ExportPrecision
from qwenvl_edge_export.verification.cases import source_case_builder

INT4 = ExportPrecision.choose("int4", vision="fp32", block=32)


def builder_of(path):
    return source_case_builder(Checkpoint.open(path))


def interrupted(quantize, call=17):
    """`quantize`, interrupted at one of its calls, two for each of a layer's five weights: in the second layer."""
    seen = []

    def function(*arguments):
        seen.append(1)
        if len(seen) == call:
            raise KeyboardInterrupt
        return quantize(*arguments)

    return function
