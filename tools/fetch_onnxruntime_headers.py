"""Puts ONNX Runtime's C headers (1.29) where tests look for them: `fetch_onnxruntime_headers.py FOLDER`.

ONNX Runtime's Python packages bring none; an npm package that carries its library for phones does (150 MB, once).
Nothing of the package is installed or run. FOLDER gets one folder per version, here FOLDER/1.29; headers of other
versions can be put beside it by hand and are tested as well.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"
FOLDER = "ios-arm64_x86_64-simulator/onnxruntime.framework/Headers"
VERSION = "1.29"


def headers(archive: Path) -> dict[str, bytes]:
    """Name and contents of the headers in the package."""
    found = {}
    with tarfile.open(archive) as package:
        for member in package:
            path = PurePosixPath(member.name)
            if path.suffix == ".h" and str(path.parent).endswith(FOLDER):
                file = package.extractfile(member)
                assert file is not None
                found[path.name] = file.read()
    return found


def main(target: Path) -> None:
    """Download, check and write; onnxruntime_c_api.h last, so that it is there only when all of them are."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not installed; without ONNX Runtime's headers their test is skipped")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = headers(next(Path(folder).glob("*.tgz")))
    if f"#define ORT_API_VERSION {VERSION.split('.')[1]}\n" not in found.get("onnxruntime_c_api.h", b"").decode():
        sys.exit(f"{PACKAGE} holds no headers of ONNX Runtime {VERSION}; without them their test is skipped")
    folder = target / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(found, key=lambda name: name == "onnxruntime_c_api.h"):
        (folder / name).write_bytes(found[name])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
