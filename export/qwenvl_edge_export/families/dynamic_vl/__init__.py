"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, dense: pictures of any size, M-RoPE, grouped-query attention.

What all three share is here; variants.py says in which of its forms each family has every part.
"""
