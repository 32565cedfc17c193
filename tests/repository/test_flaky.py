"""tools/flaky.py finds a test that fails in some runs only, and says so."""

from __future__ import annotations

from tools import flaky

LIGHT = ["-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:anyio"]
SOMETIMES = """
from pathlib import Path
import pytest

def test_good():
    pass

def test_every_second_time():
    mark = Path(__file__).with_name("mark")
    again = mark.exists()
    mark.unlink() if again else mark.touch()
    assert not again

@pytest.fixture
def broken():
    raise OSError("no set-up")

def test_set_up(broken):
    pass
"""


def test_names_are_kept_with_their_runs(tmp_path, capfd):
    (tmp_path / "test_sometimes.py").write_text(SOMETIMES)
    kept = tmp_path / "out" / "flaky.txt"
    options = ["--runs", "2", "--burners", "1", "--random-order", "--keep", str(kept)]
    assert flaky.main([*options, "--", str(tmp_path), *LIGHT]) == 1
    lines = kept.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("2 of 2  ") and lines[0].endswith("test_sometimes::test_set_up  (runs 1, 2)")
    assert lines[1].startswith("1 of 2  ") and lines[1].endswith("::test_every_second_time  (runs 2)")
    assert "run 2 of 2, beside 1 busy processes" in capfd.readouterr().out


def test_nothing_failed(tmp_path):
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    kept = tmp_path / "flaky.txt"
    assert flaky.main(["--runs", "1", "--keep", str(kept), "--", str(tmp_path), *LIGHT]) == 0
    assert kept.read_text() == ""


def test_a_run_that_does_not_finish_is_no_good_run(tmp_path):
    (tmp_path / "test_dead.py").write_text("import os\n\ndef test_dead():\n    os._exit(3)\n")
    kept = tmp_path / "flaky.txt"
    assert flaky.main(["--runs", "1", "--keep", str(kept), "--", str(tmp_path), *LIGHT]) == 1
    assert kept.read_text() == "1 of 1  pytest ended with 3  (runs 1)\n"
