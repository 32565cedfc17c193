"""The program `qwenvl`."""

from qwenvl_edge.cli.program import main

__all__ = ["main"]
