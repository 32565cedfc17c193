"""One writer per path, whoever the others are, and no lock file left that would stop anybody."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwenvl_edge.errors import BundleError
from qwenvl_edge_export.export import export
from qwenvl_edge_export.files import path_lock
from qwenvl_edge_export.files.path_lock import lock_path, sole_writer, staying
from support.random_checkpoint import write_checkpoint

fcntl = pytest.importorskip("fcntl", reason="flock is a call of POSIX systems")

HOLDER = """
import sys, time
from pathlib import Path
from qwenvl_edge_export.files.path_lock import sole_writer, staying
with (staying if sys.argv[2] == "shared" else sole_writer)(Path(sys.argv[1]), "an export"):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNTER = """
import sys
from pathlib import Path
from qwenvl_edge_export.files import path_lock
path_lock._POLL_S = 0.001
target = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with path_lock.sole_writer(target, "counting", wait=True):
        target.write_text(str(int(target.read_text()) + 1))
"""


@pytest.fixture
def target(tmp_path):
    return tmp_path / "place" / "bundle"


@pytest.fixture
def other(target):
    """Starts another process that holds the lock until its standard input is closed."""
    started = []

    def start(kind="sole"):
        command = [sys.executable, "-c", HOLDER, str(target), kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse_flock(*arguments):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_another_process_is_refused_with_who_it_is(target, other):
    process = other()
    said = (
        rf'"{target}" is being written by an export \(process {process.pid} on {os.uname().nodename}, since .* UTC\); '
        r"wait for it \(--wait\), or choose another name\.$"
    )
    with pytest.raises(BundleError, match=said), sole_writer(target, "an export"):
        pass
    process.communicate("")
    with sole_writer(target, "an export"):
        assert names(target.parent) == [lock_path(target).name]
    assert names(target.parent) == []


@pytest.mark.parametrize("flock", [True, False])
def test_another_thread_is_refused(target, monkeypatch, flock):
    """Also where flock tells processes apart only, as on NFS."""
    monkeypatch.setattr(fcntl, "flock", fcntl.flock if flock else lambda *arguments: None)
    problems = []

    def attempt():
        try:
            with sole_writer(target, "a thread"):
                problems.append("both have it")
        except BundleError as error:
            problems.append(str(error))

    with sole_writer(target, "an export"):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(problems) == 1 and "is being written by an export (process" in problems[0]


def test_a_killed_holder_stops_nobody(target, other):
    process = other()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock_path(target).exists()
    with sole_writer(target, "an export"):
        pass
    assert names(target.parent) == []


def test_a_stopped_holder_is_alive(target, other):
    other().send_signal(signal.SIGSTOP)
    with pytest.raises(BundleError, match="is being written"), sole_writer(target, "an export"):
        pass


def test_waiting(target, other, monkeypatch):
    monkeypatch.setattr(path_lock, "_POLL_S", 0.01)
    process, told = other(), []

    def progress(done, total, what):
        told.append(what)
        if process.poll() is None:
            process.communicate("")

    with sole_writer(target, "an export", wait=True, progress=progress):
        assert names(target.parent) == [lock_path(target).name]
    assert told[0].startswith(f"waiting for an export (process {process.pid} on ")


def test_those_who_stay_keep_out_only_who_replaces(target, other):
    target.mkdir(parents=True)
    with staying(target, "a build"):
        process = other("shared")
        with pytest.raises(BundleError, match="is being written by"), sole_writer(target, "an export"):
            pass
        process.communicate("")
        with pytest.raises(BundleError, match="is being written by"), sole_writer(target, "an export"):
            pass
    assert names(target.parent) == ["bundle"]
    with sole_writer(target, "an export"), pytest.raises(BundleError, match="an export"), staying(target, "a build"):
        pass
    assert names(target.parent) == ["bundle"]


def test_a_file_that_is_removed_while_it_is_being_locked(target, other, monkeypatch):
    """The last holder removes it between another's opening and locking, and somebody makes it anew."""
    flock, processes = fcntl.flock, []

    def late(descriptor, operation):
        if not processes:
            lock_path(target).unlink()
            processes.append(other())
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BundleError, match=r"is being written by an export"), sole_writer(target, "an export"):
        pass
    assert len(processes) == 1


def test_processes_take_turns(target):
    """Eight of them, which remove the file all the time: a lock on a removed file would lose counts."""
    target.parent.mkdir()
    target.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(target), "50"]
    for process in [subprocess.Popen(command) for _ in range(8)]:
        assert process.wait() == 0
    assert target.read_text() == "400"
    assert names(target.parent) == ["bundle"]


def test_a_file_system_without_flock(target, monkeypatch):
    """The file itself is the lock; one that a killed holder left is named, since nobody else can tell."""
    monkeypatch.setattr(fcntl, "flock", refuse_flock)
    with sole_writer(target, "an export"):
        (left,) = names(target.parent)
        monkeypatch.setattr(path_lock, "_held", {})  # as another process sees it
        said = rf'an export \(process {os.getpid()} .*if that one does not run any more, remove ".*{left}"\.$'
        with pytest.raises(BundleError, match=said), sole_writer(target, "an export"):
            pass
        path_lock._held[target.parent / left] = -1
    assert names(target.parent) == []
    with staying(target, "a build"):
        pass
    assert names(target.parent) == []


def test_a_place_where_no_lock_can_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    said = r'cannot write .*: ".*file" is not a folder; nothing was left behind'
    with pytest.raises(BundleError, match=said), sole_writer(tmp_path / "file" / "bundle", "an export"):
        pass


def test_a_link_is_not_followed(target, tmp_path):
    target.parent.mkdir()
    (tmp_path / "precious").write_text("text")
    lock_path(target).symlink_to(tmp_path / "precious")
    with pytest.raises(BundleError, match="cannot write"), sole_writer(target, "an export"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_folders_reached_by_links_have_one_lock(target, tmp_path):
    target.parent.mkdir()
    (tmp_path / "link").symlink_to(target.parent)
    linked = tmp_path / "link" / target.name
    with sole_writer(target, "x"), pytest.raises(BundleError, match="is being written"), sole_writer(linked, "y"):
        pass


def test_two_exports_to_one_path(target, other, tmp_path):
    """The second one is refused before it does anything, whatever the first one has made already."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    process = other()
    partial = target.with_name("bundle.partial-0a1b")
    partial.mkdir()
    (partial / "vision.data").write_text("half")
    with pytest.raises(BundleError, match="is being written by an export"):
        export(checkpoint, target, check=False)
    assert (partial / "vision.data").read_text() == "half"
    process.communicate("")
    export(checkpoint, target, check=False)
    assert names(target.parent) == ["bundle"]
    with staying(target, "a build for sm_86"), pytest.raises(BundleError, match="written by a build for sm_86"):
        export(checkpoint, target, check=False, force=True)


def test_the_folder_of_a_lock_need_not_be_writable(target, monkeypatch):
    """Who may not write there cannot replace anything either, so nobody needs to be kept out."""

    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(path_lock.os, "open", refuse)
    with staying(target, "a build"):
        pass
    assert not Path(lock_path(target)).exists()
