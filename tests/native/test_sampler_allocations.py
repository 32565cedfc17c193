"""The sampler's core compiled on its own: what a step allocates."""

import shutil
import subprocess

import pytest

from support.paths import ROOT


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_core_allocates_nothing_after_the_first_token(tmp_path):
    sources = [ROOT / "cpp_ext" / "tests" / "sampler_allocations.cpp"]
    sources += [path for folder in ("sampler", "simd") for path in (ROOT / "cpp_ext" / folder).glob("*.cpp")]
    program = tmp_path / "sampler_allocations"
    flags = ["-std=c++17", "-O1", f"-I{ROOT / 'cpp_ext'}", "-o", str(program)]
    subprocess.run(["c++", *flags, *map(str, sources)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
