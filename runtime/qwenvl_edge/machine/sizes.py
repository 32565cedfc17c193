"""Sizes in words."""

from __future__ import annotations


def in_words(size: int) -> str:
    """Return bytes as MB, from a thousand of them on as GB; a little is never shown as nothing."""
    if size >= 10**9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.0f} MB" if size >= 10**7 or size == 0 else f"{size / 1e6:,.2g} MB"
