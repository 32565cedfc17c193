"""This machine: processor, memory, GPU, terminal and signals."""
