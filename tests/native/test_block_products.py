"""The matrix products in C++, every kernel beside the portable one: with sanitizers, and for Arm in an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from qwenvl_edge import _core
from support.paths import ROOT

CPP = ROOT / "cpp_ext"
SOURCES = [CPP / "tests" / "block_products.cpp", *sorted((CPP / "matmul").glob("block_*.cpp"))]
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{CPP}"]
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM = {  # by QEMU's name of a processor, what it must run
    "max": {"neon-i8mm", "neon-dot", "portable"},
    "cortex-a76": {"neon-dot", "portable"},
    "cortex-a72": {"portable"},
}


def compiled(compiler: str, program: Path, *flags: str) -> Path:
    subprocess.run([compiler, *FLAGS, *flags, "-o", program, *SOURCES], check=True)
    return program


def kernels(*command: str | Path) -> set[str]:
    """The kernels that a run of the program has found alike."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.split(":", 1)[1].split())


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no c++")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="only the portable kernels are here")
def test_every_kernel_gives_the_same_bits_under_sanitizers(tmp_path):
    sanitizers = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    assert kernels(compiled("c++", tmp_path / "products", *sanitizers)) == set(_core.multiply_variants())


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(CROSS) is None or shutil.which(QEMU) is None:
        pytest.skip("Debian: apt-get install g++-aarch64-linux-gnu qemu-user")
    return compiled(CROSS, tmp_path_factory.mktemp("arm") / "products", "-O2", "-static")


@pytest.mark.parametrize("processor", ARM)
def test_every_arm_kernel_gives_the_same_bits(arm_program: Path, processor: str) -> None:
    try:
        found = kernels(QEMU, "-cpu", processor, arm_program)
    except AssertionError as error:
        if "unable to find CPU model" in str(error):
            pytest.skip(f"this QEMU has no {processor}")
        raise
    assert found == ARM[processor]
