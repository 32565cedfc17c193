"""The two ONNX graphs, built node by node: no tracing, so operators and names are exactly the ones written here."""
