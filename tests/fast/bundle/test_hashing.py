"""Files that are hashed in the background, and proofs that spare it the next time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import threading

import pytest

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.bundle import files, hashing, proofs
from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.files import FileInfo, check_files
from qwenvl_edge.bundle.hashing import BackgroundCheck
from qwenvl_edge.errors import BundleError
from support.patience import PATIENCE_S
from support.scripted import ScriptedBackend, write_bundle

DATA = bytes(range(256)) * 20_000  # five chunks, the last one not full
LIMIT = 1000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, in which proofs of new files are kept too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(proofs, "_SETTLED_S", 0.0)
    monkeypatch.setattr(proofs.sys, "platform", "linux")
    return tmp_path / "cache" / "qwenvl-edge" / "hashed"


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "decoder.data").write_bytes(DATA)
    listed = {"decoder.data": FileInfo(len(DATA), hashlib.sha256(DATA).hexdigest())}
    return folder, listed


def flip(path, at=3_000_001, bit=64):
    """Flip a bit in place, and put the time of the last change back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def finished(left, busy=lambda: False):
    check = BackgroundCheck(left, busy)
    check.wait()
    return check


def test_a_flipped_bit_in_a_large_file_is_found_in_the_background(weights):
    folder, listed = weights
    flip(folder / "decoder.data")
    left = check_files(folder, listed, LIMIT)
    assert [file.path.name for file in left] == ["decoder.data"]
    check = BackgroundCheck(left, lambda: True)
    with pytest.raises(BundleError, match=r"was altered: .*; answers since it was opened may be wrong; copy the"):
        check.wait()
    with pytest.raises(BundleError, match="was altered"):
        check.check()


def test_a_file_is_hashed_once_until_it_is_written_to(weights, cache, monkeypatch):
    folder, listed = weights
    finished(check_files(folder, listed, LIMIT)).check()
    assert len(list(cache.iterdir())) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("it is hashed again"))
    for limit in (LIMIT, 1 << 30):
        assert check_files(folder, listed, limit) == ()
    flip(folder / "decoder.data")
    (left,) = check_files(folder, listed, LIMIT)
    with pytest.raises(BundleError, match="was altered"):
        finished([left])


def test_all_files_are_hashed_whatever_was_proven(weights, cache):
    folder, listed = weights
    finished(check_files(folder, listed, LIMIT))
    (proof,) = cache.iterdir()
    flip(folder / "decoder.data")
    (cache / proofs._name((folder / "decoder.data").stat(), listed["decoder.data"].sha256)).touch()  # a forged one
    assert proof.exists() and check_files(folder, listed, LIMIT) == ()
    with pytest.raises(BundleError, match="was altered"):
        check_files(folder, listed)


@pytest.mark.parametrize("harm", ["file", "open", "other"])
def test_a_cache_that_cannot_be_used_or_trusted(weights, cache, harm, monkeypatch):
    folder, listed = weights
    if harm == "file":
        cache.parent.parent.write_text("no folder")
    else:
        cache.mkdir(parents=True)
        cache.chmod(0o777 if harm == "open" else 0o700)
    if harm == "other":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    finished(check_files(folder, listed, LIMIT)).check()
    assert len(check_files(folder, listed, LIMIT)) == 1
    assert harm == "file" or not list(cache.iterdir())


def test_files_that_changed_a_moment_ago_are_not_proven(weights, cache, monkeypatch):
    monkeypatch.setattr(proofs, "_SETTLED_S", 60.0)
    folder, listed = weights
    finished(check_files(folder, listed, LIMIT))
    assert not list(cache.iterdir())


def test_proofs_do_not_pile_up(weights, cache, monkeypatch):
    monkeypatch.setattr(proofs, "_MOST", 8)
    folder, listed = weights
    cache.mkdir(parents=True, mode=0o700)
    for number in range(12):
        (cache / str(number)).touch()
        os.utime(cache / str(number), (number, number))
    finished(check_files(folder, listed, LIMIT))
    left = {proof.name for proof in cache.iterdir()}
    assert len(left) == 11 and not {"0", "1"} & left


def test_a_replaced_or_removed_file_is_not_the_one_that_was_opened(weights):
    folder, listed = weights
    left = check_files(folder, listed, LIMIT)
    other = folder / "other"
    other.write_bytes(DATA[::-1])
    other.replace(folder / "decoder.data")
    finished(left).check()
    (folder / "decoder.data").unlink()
    finished(left).check()


def test_it_goes_slowly_while_somebody_computes_and_can_be_stopped(weights, monkeypatch):
    folder, listed = weights
    pauses, first = [], threading.Event()
    monkeypatch.setattr(hashing.time, "sleep", lambda seconds: (pauses.append(seconds), first.set()))
    check = BackgroundCheck(check_files(folder, listed, LIMIT), lambda: True)
    assert first.wait(PATIENCE_S)
    assert check._done.wait(PATIENCE_S)
    assert len(pauses) == 5 and min(pauses) > 0
    check = BackgroundCheck(check_files(folder, {"decoder.data": FileInfo(len(DATA), "0" * 64)}, LIMIT), lambda: True)
    check.stop()
    assert check._done.wait(PATIENCE_S)
    assert check.failure is None or "altered" in check.failure


def test_an_engine_stops_answering(tmp_path, monkeypatch):
    """Every call raises once the file is hashed; the answers of before were given."""
    monkeypatch.setattr("qwenvl_edge.bundle.bundle.HASHED_AT_OPEN_BYTES", LIMIT)
    manifest = write_bundle(tmp_path).manifest
    listed = {name: FileInfo(info.size, files.sha256(tmp_path / name)) for name, info in manifest.files.items()}
    graphs = dataclasses.replace(manifest.graphs, vision="qwen.tiktoken")
    dataclasses.replace(manifest, files=listed, graphs=graphs).write(tmp_path)
    flip(tmp_path / "embedding.bin", at=9000)
    answered, hash_file = threading.Event(), BackgroundCheck._check

    def late(self, file):
        answered.wait(PATIENCE_S)
        hash_file(self, file)

    monkeypatch.setattr(BackgroundCheck, "_check", late)
    engine = QwenVLEngine(Bundle.open(tmp_path), backend=ScriptedBackend("fine<|im_end|>", "never<|im_end|>"))
    assert engine.chat("hi").text == "fine"
    answered.set()
    with pytest.raises(BundleError, match="was altered"):
        engine.check_files()
    with engine.batcher(rows=1) as batcher:
        calls = [engine.chat, engine.complete, engine.count_tokens, batcher.submit]
        for call in [*calls, lambda hi: engine.stream(hi).finish()]:
            with pytest.raises(BundleError, match=r"embedding.bin.* was altered"):
                call("hi")
