"""Helpers of the tests: stand-ins, scripted engines, random checkpoints, paths."""
