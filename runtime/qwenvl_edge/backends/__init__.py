"""Backends run a bundle's graphs: base.Backend is the interface, each subfolder implements it with one library."""
