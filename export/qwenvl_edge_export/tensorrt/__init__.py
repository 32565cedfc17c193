"""Bundles to TensorRT plans: targets, lowering of the graphs, optimisation profiles, the build. Needs no PyTorch."""
