"""Checkpoints on the disk, as checked, memory-mapped tensors."""
