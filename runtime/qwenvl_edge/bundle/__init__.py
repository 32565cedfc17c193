"""The bundle's folder on the disk, its manifest, and TensorRT plans beside it."""
