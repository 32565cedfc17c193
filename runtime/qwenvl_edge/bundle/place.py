"""The place that a new bundle is written to."""

from __future__ import annotations

from pathlib import Path

from qwenvl_edge.bundle.manifest import MANIFEST_NAME
from qwenvl_edge.errors import BundleError


def check_place(place: Path, *, force: bool) -> None:
    """Check that a bundle may be written at `place`.

    force: it may replace a bundle that is there.

    Raises:
        BundleError: something is there that may not be replaced.
    """
    if not (place.exists() or place.is_symlink()):
        return
    if not force:
        raise BundleError(f'"{place}" exists already; choose another name, or replace it with --force.')
    if not (place / MANIFEST_NAME).is_file():
        raise BundleError(f'"{place}" is not a bundle, so it is not replaced; choose another name or remove it.')
