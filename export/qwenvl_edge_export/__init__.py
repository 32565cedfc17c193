"""From a Qwen-VL checkpoint to a bundle: reading, reference model, ONNX graphs, verification. Needs PyTorch."""
