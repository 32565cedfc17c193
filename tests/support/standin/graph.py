"""An ONNX graph as a TensorRT engine sees it, run by ONNX Runtime on memory that was bound from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

_DTYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(bool)": ("BOOL", np.bool_),
}


@dataclass(frozen=True)
class Tensor:
    is_input: bool
    dtype: str
    shape: tuple[int, ...]  # -1: each call chooses
    symbols: tuple[int | str, ...]
    numpy: type


class OnnxGraph:
    """A graph file. tensors: inputs, then outputs. dimensions: sizes of symbols that the engine has fixed."""

    def __init__(self, path: str, dimensions: dict[str, int]):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.tensors = {}
        self.inputs, self.outputs = self._session.get_inputs(), self._session.get_outputs()
        for is_input, nodes in ((True, self.inputs), (False, self.outputs)):
            for node in nodes:
                symbols = tuple(dimensions.get(size, size) for size in node.shape)
                shape = tuple(size if isinstance(size, int) else -1 for size in symbols)
                dtype, numpy = _DTYPES[node.type]
                self.tensors[node.name] = Tensor(is_input, dtype, shape, symbols, numpy)

    def sizes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Bytes of every tensor, given the inputs' shapes."""
        return {
            name: math.prod(shape) * np.dtype(self.tensors[name].numpy).itemsize
            for name, shape in self._shapes(shapes).items()
        }

    def run(self, data: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
        """Run on byte arrays, in place."""
        binding = self._session.io_binding()
        for name, shape in self._shapes(shapes).items():
            tensor = self.tensors[name]
            value = ort.OrtValue.ortvalue_from_numpy(data[name].view(tensor.numpy).reshape(shape))
            bind = binding.bind_ortvalue_input if tensor.is_input else binding.bind_ortvalue_output
            bind(name, value)
        self._session.run_with_iobinding(binding)

    def _shapes(self, given: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape; a symbol has one value in all of them."""
        values: dict[str, int] = {}
        for name, shape in given.items():
            for symbol, size in zip(self.tensors[name].symbols, shape, strict=True):
                if isinstance(symbol, str) and values.setdefault(symbol, size) != size:
                    raise RuntimeError(f"{name} has {symbol} = {size}, another input {values[symbol]}")
        if "P" in values:  # four patches are a row of features
            values["Q"] = values["P"] // 4
        return {
            name: tuple(size if isinstance(size, int) else values[size] for size in tensor.symbols)
            for name, tensor in self.tensors.items()
        }
