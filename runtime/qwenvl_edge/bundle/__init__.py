"""What lies on the disk: the bundle's folder, its manifest, and TensorRT engines beside it."""
