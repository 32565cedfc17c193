"""TensorRT plans of a bundle that is replaced: those that fit the new one, file by file, stay."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.engines import PLAN_NAME, PLANS_FOLDER, PlanManifest, bundle_digest, plan_targets
from qwenvl_edge.errors import BundleError


def keep_plans(old: Path, new: Path) -> list[str]:
    """Link the plans of the bundle in `old` that fit the whole one in `new` into `new`.

    `old` stays as it is. The caller keeps others from building there. Returns the targets of plans that do not fit.
    """
    targets = plan_targets(old)
    if not targets:
        return []
    digest = bundle_digest(Bundle.open(new).manifest)
    fitting = [target for target in targets if _digest(old / PLANS_FOLDER / target) == digest]
    for target in fitting:
        _link(old / PLANS_FOLDER / target, new / PLANS_FOLDER / target)
    return [target for target in targets if target not in fitting]


def _digest(plan: Path) -> str:
    """The digest of the bundle that a plan was built from; "" if that cannot be read."""
    try:
        return PlanManifest.from_json((plan / PLAN_NAME).read_text(encoding="utf-8")).bundle_digest
    except (OSError, UnicodeDecodeError, BundleError):
        return ""


def _link(source: Path, target: Path) -> None:
    """Make `target` a copy of a folder of files that shares their bytes, where the file system has hard links."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)
