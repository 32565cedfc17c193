"""Weights on fewer bits, and the samples that choose their integers."""
