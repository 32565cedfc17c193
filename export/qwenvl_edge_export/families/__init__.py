"""Model families: each knows its configuration, its checkpoints' tensors, its vision graph and its reference."""
