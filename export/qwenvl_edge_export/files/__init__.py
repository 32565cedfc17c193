"""Folders that are whole or not there; threads over pieces of tensors."""
