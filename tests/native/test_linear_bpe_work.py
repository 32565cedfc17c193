"""The linear-time encoder in C++: its work grows like the text, and it is built once for all threads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT
from support.vocabularies import TINY, full_vocabulary

CPP = ROOT / "cpp_ext"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("there is no c++")
    made = tmp_path_factory.mktemp("linear") / "linear_bpe"
    sources = [CPP / "tests" / "linear_bpe.cpp", *(CPP / "tokenizer").glob("*.cpp")]
    subprocess.run(["c++", "-std=c++17", "-O1", "-pthread", f"-I{CPP}", "-o", made, *sources], check=True)
    return made


@pytest.mark.parametrize("vocabulary", [lambda: TINY, full_vocabulary], ids=["tiny", "full"])
def test_work_is_linear_and_the_encoder_late(program: Path, vocabulary) -> None:
    done = subprocess.run([program, vocabulary()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
