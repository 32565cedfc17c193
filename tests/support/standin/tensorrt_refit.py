"""Refitter and OnnxParserRefitter of the stand-in: they fill a stripped engine with its graph's weights."""

from __future__ import annotations

from pathlib import Path

import onnx

from support.standin.tensorrt_types import Severity


class Refitter:
    """Weights of a stripped engine; the graph that it runs tells their names."""

    def __init__(self, engine, logger):
        self.engine, self.logger = engine, logger
        self.given: dict[str, bytes] = {}

    def get_missing_weights(self):
        return sorted(set(stored_weights(onnx.load(self.engine.source))) - set(self.given))

    def refit_cuda_engine(self):
        if self.given != stored_weights(onnx.load(self.engine.source)):
            self.logger.log(Severity.ERROR, "IRefitter::refitCudaEngine: Error Code 3: wrong weights")
            return False
        self.engine.lacks_weights = False
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self.refitter, self.logger = refitter, logger
        self.num_errors = 0

    def refit_from_bytes(self, model, path=None):
        try:
            graph = onnx.load_from_string(model)
            onnx.load_external_data_for_model(graph, str(Path(path).parent))
        except Exception as error:  # of protobuf, of the file system, of onnx
            self.logger.log(Severity.ERROR, f"Failed to read the external weights: {error}")
            return False
        self.refitter.given = stored_weights(graph)
        return True


def stored_weights(model: onnx.ModelProto) -> dict[str, bytes]:
    """The large weights by name."""
    return {t.name: t.raw_data for t in model.graph.initializer if len(t.raw_data) > 64}
