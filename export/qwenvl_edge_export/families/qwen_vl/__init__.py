"""Qwen-VL (arXiv 2308.12966): ViT-bigG, position-aware adapter, Qwen-7B decoder."""
