"""Puts TensorRT's C++ headers (10.14) where the plugin's tests look for them: `fetch_tensorrt_headers.py FOLDER`.

They are taken out of the PyPI package kernel-lens, which ships them; nothing of the package is installed or run.
JetPack and TensorRT's own packages bring the headers along: then this is not needed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "kernel-lens==2.0.1"
FOLDER = "kernel_lens/include/tensorrt/"
VERSION = "#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 14\n"


def main(target: Path) -> None:
    """Download, check and write; NvInfer.h last, so that it is there only when all of them are."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
    headers = {name.removeprefix(FOLDER): wheel.read(name) for name in wheel.namelist() if name.startswith(FOLDER)}
    if VERSION not in headers.get("NvInferVersion.h", b"").decode():
        sys.exit(f"{PACKAGE} holds no headers of TensorRT 10.14; without them the plugin's tests are skipped")
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(headers, key=lambda name: name == "NvInfer.h"):
        (target / name).write_bytes(headers[name])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
