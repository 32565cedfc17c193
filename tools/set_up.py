"""Answers for `make` before and while it sets up .venv/: is this machine able to, which build of PyTorch is small.

    python3 tools/set_up.py check .venv         one sentence and exit code 1 where it is not
    .venv/bin/python tools/set_up.py torch VERSION

Written for any Python 3, so that an old one reads why it is too old.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

OLDEST = (3, 10)
NEEDED_GB = 3
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
"""Address of PyTorch's builds without CUDA: https://pytorch.org/get-started/locally/."""
_DEBIAN = "on Debian and Ubuntu: sudo apt install build-essential python3-dev python3-venv"


def missing(version=sys.version_info[:2], find=importlib.util.find_spec, which=shutil.which, include=None):
    """Return a sentence about what setting up lacks, or None.

    Args:
        version: of this Python, (major, minor).
        find: finds a module, or returns None.
        which: finds a program, or returns None.
        include: the folder of Python.h; None asks Python.
    """
    if version < OLDEST:
        return "Python {}.{} is too old; make it with 3.10 or newer: make PYTHON=python3.12".format(*version)
    if find("venv") is None or find("ensurepip") is None:
        return "Python's module venv is not installed; " + _DEBIAN
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(which(name) for name in compiler):
        return "no C++ compiler ({}) is installed; {}".format(", ".join(compiler), _DEBIAN)
    if not Path(include or sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (Python.h) are not installed; " + _DEBIAN
    return None


def broken(folder):
    """Return a sentence about an environment in `folder` that is of an old Python or not whole, or None."""
    python = Path(folder, "bin", "python")
    if not os.path.lexists(str(python)):
        return None
    ask = "import pip, sys; print(*sys.version_info[:2])"
    try:
        asked = subprocess.run([str(python), "-c", ask], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        found = tuple(map(int, asked.stdout.split()))
    except (OSError, subprocess.CalledProcessError):
        return f"{folder} is not whole; remove it: rm -r {folder}"
    if found >= OLDEST:
        return None
    return "{2} is of Python {0}.{1}, and 3.10 or newer is needed; remove it: rm -r {2}".format(*found, folder)


def check(folder):
    """Return a sentence about why nothing can be set up in `folder`, or None."""
    if os.path.lexists(str(Path(folder, "bin", "python"))):
        return broken(folder)  # one that works needs neither venv nor this Python any more
    free = shutil.disk_usage(str(Path(folder).absolute().parent)).free / 1e9
    short = f"setting up takes {NEEDED_GB} GB, but the disk has {free:.1f} GB free" if free < NEEDED_GB else None
    return missing() or short


def pip(*words):
    """Run pip of this environment; return its exit code."""
    return subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", *words])


def install_torch(version):
    """Install PyTorch; where the package index would bring CUDA's libraries, PyTorch's own build without them.

    Those are gigabytes that nothing here uses. Returns pip's exit code.
    """
    wanted = "torch==" + version
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        if pip("--dry-run", "--report", str(report), wanted) != 0:
            return 1
        planned = json.loads(report.read_text(encoding="utf-8"))
    names = {item["metadata"]["name"] for item in planned["install"]}
    if not brings_cuda(names):
        return pip(wanted)
    print("The package index would bring CUDA with PyTorch; taking the build without it from " + CPU_BUILDS)
    if pip("--index-url", CPU_BUILDS, wanted) == 0:
        return 0
    print("That cannot be reached, so PyTorch comes with CUDA: about 3 GB to fetch, 6 GB on the disk.")
    return pip(wanted)


def brings_cuda(names):
    """True if packages of CUDA are among the names."""
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def main(words):
    """Run one of the two commands; return the exit code."""
    if words[0] == "torch":
        return install_torch(words[1])
    said = check(words[1])
    if said is not None:
        sys.stderr.write("make: " + said + ".\n")
    return int(said is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
