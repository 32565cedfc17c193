"""Puts KubeRay's definition of a RayService where a test looks for it: `fetch_kuberay_schema.py FILE`.

It lies in the operator's Go module (Apache-2.0), which Go fetches as any other; nothing of it is built or run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "github.com/ray-project/kuberay/ray-operator@v1.5.0"
DEFINITION = "config/crd/bases/ray.io_rayservices.yaml"


def main(target: Path) -> None:
    """Download and copy; without Go or the module one sentence says that the test is skipped."""
    go = shutil.which("go")
    if go is None:
        sys.exit("Go is not installed; without KubeRay's definition its test is skipped")
    with tempfile.TemporaryDirectory() as folder:
        command = [go, "mod", "download", "-json", MODULE]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"Go cannot fetch {MODULE}; without KubeRay's definition its test is skipped")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(json.loads(run.stdout)["Dir"], DEFINITION), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
