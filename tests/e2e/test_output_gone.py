"""The program where its output, its input or its folders are gone: one sentence or silence, and the right exit code."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

QWENVL = shlex.join([sys.executable, "-m", "qwenvl_edge.cli"])
FULL = "/dev/full"


def run(line: str, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=300, **options)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


def test_a_reader_that_goes_away(nano):
    done = run(f"{QWENVL} chat {nano} --greedy 'Describe the picture.' | head -c 1; echo ${{PIPESTATUS[0]}} >&2")
    assert done.stderr in ("141\n", "0\n")  # the answer may be out before the reader goes
    done = run(f"{QWENVL} --help | head -c 1; echo ${{PIPESTATUS[0]}} >&2")
    assert done.stderr in ("141\n", "0\n")
    conversation = f"yes 'Is there a mug?' | head -20 | {QWENVL} chat {nano} --max-new-tokens 2 | head -1"
    done = run(f"{conversation}; echo ${{PIPESTATUS[2]}} >&2")
    assert done.stderr.splitlines()[-1] == "141" and len(done.stderr.splitlines()) == 2  # and what runs the bundle


@pytest.mark.skipif(not Path(FULL).exists(), reason="this system has no full device")
@pytest.mark.parametrize("command", ["chat {} hi --max-new-tokens 2", "doctor {}", "plan {}", "--help"])
def test_a_full_disk(nano, command):
    done = run(f"{QWENVL} {command.format(nano)} > {FULL}")
    assert (done.returncode, done.stderr) == (2, "qwenvl: cannot write the output: No space left on device.\n")


@pytest.mark.parametrize("command", ["chat {} hi --max-new-tokens 2", "plan {}"])
def test_a_closed_output(nano, command):
    done = run(f"{QWENVL} {command.format(nano)} >&-")
    assert (done.returncode, done.stderr) == (2, "qwenvl: cannot write the output: it is closed.\n")


def test_a_closed_or_full_error_stream_stops_nothing(nano):
    for stream in ("2>&-", f"2>{FULL}"):
        done = run(f"{QWENVL} chat {nano} hi --max-new-tokens 2 --device cpu {stream}")
        assert done.returncode == 0 and done.stdout
        assert run(f"{QWENVL} chat nowhere hi {stream}").returncode == 2


def test_a_closed_or_empty_input(nano):
    done = run(f"{QWENVL} chat {nano} <&-")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("qwenvl: there is no input; give a PROMPT")
    assert run(f"{QWENVL} chat {nano} < /dev/null").returncode == 0


def test_export_without_an_error_stream(tmp_path):
    """The files that it opens must not get the number of standard error."""
    done = run(f"{QWENVL} export models/nano {tmp_path}/bundle --skip-verify 2>&- >&-")
    assert done.returncode == 0 and (tmp_path / "bundle" / "bundle.json").is_file()
    assert run(f"{QWENVL} doctor {tmp_path}/bundle --files").returncode == 0


@pytest.mark.parametrize("where", ["bundle", "parent"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_folders_that_may_not_be_entered(nano, tmp_path, where):
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "bundle").mkdir()
    locked = tmp_path / "parent" / "bundle" if where == "bundle" else tmp_path / "parent"
    locked.chmod(0)
    try:
        done = run(f"{QWENVL} chat {tmp_path}/parent/bundle hi")
    finally:
        locked.chmod(0o700)
    assert done.returncode == 2 and "Permission denied" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        *("--threads 0", "--threads -1", "--threads 100000", "--max-context 0", "--max-context -5"),
        *("--max-new-tokens 0", "--seed -1", "--seed 99999999999999999999999999", "--device tpu"),
        *("--image https://a.b/c.png", "--image ''"),
    ],
)
def test_options_out_of_range(nano, options):
    done = run(f"{QWENVL} chat {nano} hi {options}")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("qwenvl: ")


@pytest.mark.parametrize("locale", ["C", "POSIX", "nonsense", "de_DE.ISO-8859-1"])
def test_any_locale_and_any_name(nano, tmp_path, locale):
    name = os.fsdecode(b"b\xfcndel \xe6\xb1\xbd\n")
    (tmp_path / name).symlink_to(nano)
    environment = {**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", "qwenvl_edge.cli", "chat", str(tmp_path / name), "汽车在哪里?"]
    words += ["--max-new-tokens", "2"]
    done = subprocess.run(words, capture_output=True, check=False, timeout=300, env=environment)
    assert b"Traceback" not in done.stderr and done.returncode in (0, 2)
    words[-3] = os.fsdecode(b"\xff\xfe")
    done = subprocess.run(words, capture_output=True, check=False, timeout=300, env=environment)
    assert b"Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.fixture
def ctrl_c():
    """What a shell starts in the background ignores SIGINT, and so would the programs that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_two_signals_while_an_export_cleans_up(tmp_path):
    words = [sys.executable, "-m", "qwenvl_edge.cli", "export", "models/nano", str(tmp_path / "bundle")]
    for first, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None and process.stderr.readline()  # it has begun
        for number in (first, signal.SIGINT):
            process.send_signal(number)
            time.sleep(0.01)
        rest = process.stderr.read()
        assert (process.wait(60), "Traceback" in rest) == (code, False), rest
        assert not list(tmp_path.iterdir())
