"""From a Qwen-VL checkpoint to a bundle: reading, reference model, ONNX graphs, verification. Needs PyTorch."""

import qwenvl_edge  # noqa: F401, first of all: it keeps ONNX Runtime from reporting its use
