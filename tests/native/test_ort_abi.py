"""matmul/ort_abi.hpp beside ONNX Runtime's own header: a program of static assertions compiles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT

CPP = ROOT / "cpp_ext"
HEADERS = sorted((ROOT / ".cache" / "onnxruntime").glob("*/onnxruntime_c_api.h"))


def compiled(headers: Path, cpp: Path) -> subprocess.CompletedProcess[str]:
    options = ["-std=c++17", "-fsyntax-only", "-Wno-ignored-attributes", f"-I{cpp}", f"-I{CPP}", f"-I{headers}"]
    command = ["c++", *options, CPP / "tests" / "ort_abi.cpp"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=HEADERS or [None], ids=lambda path: path.parent.name if path else "no headers")
def headers(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("run tools/fetch_onnxruntime_headers.py .cache/onnxruntime")
    if shutil.which("c++") is None:
        pytest.skip("there is no c++")
    folder: Path = request.param.parent
    return folder


def test_numbers_and_layout_are_those_of_the_header(headers: Path) -> None:
    done = compiled(headers, CPP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("Entry<274,", "Entry<275,", "KernelContext_ParallelFor lies elsewhere"),
        (
            "Entry<62, Status*(const ShapeInfo*, std::int64_t*, std::size_t)>",
            "Entry<62, Status*(const ShapeInfo*)>",
            "GetDimensions is called otherwise",
        ),
        ("    void (*kernel_destroy)(void*);\n", "", "GetInputCharacteristic lies elsewhere"),
        ("kUint8 = 2", "kUint8 = 3", "kUint8"),
    ],
)
def test_another_number_or_layout_is_found(headers: Path, tmp_path: Path, right: str, wrong: str, message: str) -> None:
    text = (CPP / "matmul" / "ort_abi.hpp").read_text()
    assert text.count(right) == 1
    changed = tmp_path / "matmul" / "ort_abi.hpp"
    changed.parent.mkdir()
    changed.write_text(text.replace(right, wrong))
    done = compiled(headers, tmp_path)
    assert done.returncode != 0 and message in done.stderr
