"""Bundles that several modules read: each is exported once in a session, and stays as it was exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qwenvl_edge.bundle.bundle import Bundle

if TYPE_CHECKING:
    from qwenvl_edge_export.options import ExportPrecision


class Exports:
    """Bundles of one checkpoint in the precisions that are asked for; tests must not change them, see `copy_of`."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint = checkpoint
        self._folder = folder
        self._made: dict[str, Bundle] = {}
        self._files: dict[Path, dict[str, tuple[int, int]]] = {}

    def __call__(
        self, precision: str | ExportPrecision = "fp32", *, check: bool = False, calibration: bool = False, **options
    ) -> Bundle:
        """The bundle of ExportPrecision.choose(precision, **options).

        check: it is compared with the checkpoint; losses beyond their limits are in its manifest, and no error.
        calibration: on the built-in samples.
        """
        exporter = pytest.importorskip("qwenvl_edge_export.export", reason="exporting needs PyTorch")
        if precision == "bf16":
            options = {"target": "gpu"} | options  # no CPU computes it
        chosen = exporter.ExportPrecision.choose(precision, **options) if isinstance(precision, str) else precision
        key = f"{chosen} {calibration}"
        found = self._made.get(key)
        if found is None or (check and not found.manifest.parity):
            place = self._folder / str(len(self._files))
            found = self._made[key] = exporter.export(
                self.checkpoint, place, precision=chosen, calibration=calibration, check=check, allow_loss=True
            )
            self._files[place] = _listing(place)
        return found

    def check_unchanged(self) -> None:
        """Fail where a test wrote into a bundle that others read."""
        for place, files in self._files.items():
            assert _listing(place) == files, f"a test changed the bundle in {place}; it must take a copy"


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """A copy in a new folder, for a test that changes it."""
    shutil.copytree(bundle.path, folder)
    return Bundle.open(folder)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns) for path, stat in found}
