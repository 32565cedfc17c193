"""The plugin's enqueue through TensorRT's C++ interface, and every kernel under compute-sanitizer, on a GPU."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_enqueue_and_every_kernel(build, plugin):
    assert "every kernel computes" in run(build / "tests" / "gpu_test", plugin)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_finds_nothing(build, plugin, tool):
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        pytest.skip("there is no compute-sanitizer")
    run(sanitizer, "--tool", tool, "--error-exitcode", 9, build / "tests" / "gpu_test", plugin)
