"""Puts the full Qwen vocabulary (qwen.tiktoken) where the tests look for it: `fetch_vocabulary.py TARGET`.

It is taken out of the PyPI package dashscope, which ships it; nothing of the package is installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MEMBER = "dashscope/resources/qwen.tiktoken"
SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def main(target: Path) -> None:
    """Download, check and write."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "dashscope"]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("dashscope-*.whl"))
        data = zipfile.ZipFile(wheel).read(MEMBER)
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{MEMBER} in {wheel.name} is not the vocabulary that the published checkpoints use")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
