"""`qwenvl watch`: what a day does to a camera, shortened, and the program."""

import contextlib
import json
import os
import re
import resource
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.cli.program import main
from qwenvl_edge.errors import FrameError
from qwenvl_edge.machine import systemd
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.watch import watching as watching_module
from qwenvl_edge.robotics.watch.sinks import LineFile
from qwenvl_edge.robotics.watch.watching import ChangeFilter, Watch, WatchSettings
from support.moments import moments
from support.patience import PATIENCE_S, until
from support.scripted import engine
from support.watched import Lines, watch, write_video

pytest.importorskip("av", reason="the extra camera is not installed")

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.mark.parametrize(
    ("hold", "values", "told"),
    [
        (1, "aabba", "aba"),
        (2, "ababab", ""),
        (2, "aabbabaa", "ab" + "a"),
        (2, "aacaabb", "ab"),
        (3, "aaabbaaabbbb", "ab"),
    ],
)
def test_hysteresis(hold, values, told):
    changes = ChangeFilter(hold)
    assert "".join(value for value in values if changes.take(value)) == told


def test_only_changes_are_told(tmp_path):
    answers = [f"{word}<|im_end|>" for word in ("No.", "no", "Yes", "no", "yes", "Yes.", "yes")]
    lines, counts = watch(tmp_path, moments(*range(200), pause_s=0.02), answers, on_change=True, hold=2, every_s=0.0)
    assert lines.texts() == ["no", "Yes."] and (counts.answered, counts.told) == (7, 2)


def test_the_newest_frame_only(tmp_path):
    """A slow pace: nothing waits, and frames between are dropped."""
    lines, counts = watch(tmp_path, moments(*range(250), pause_s=0.005), ["red<|im_end|>"] * 3, every_s=0.2)
    assert counts.dropped > 20 and [line["latency_ms"] < 1000 for line in lines.lines] == [True] * 3
    frames = [line["frame"] for line in lines.lines]
    assert min(np.diff(frames)) > 5


def test_a_camera_that_disappears_and_returns(tmp_path):
    script = [1, 2, FrameError("unplugged."), RuntimeError("a driver"), *range(3, 60)]
    lines, counts = watch(tmp_path, moments(*script, pause_s=0.02), ["red<|im_end|>"] * 10)
    assert lines.events()[:2] == ["camera lost", "camera back"]
    assert counts.answered == 10 and counts.failed == 0
    lost = next(line for line in lines.lines if line.get("event") == "camera lost")
    assert lost["reason"] == "unplugged."


def test_a_frozen_camera_is_not_asked_about_twice(tmp_path):
    lines = Lines()
    qwen, _ = engine(tmp_path, *["red<|im_end|>"] * 9)
    camera = moments(7)
    watched = Watch(qwen, camera, WatchSettings("What?", every_s=0.0), [lines], Messages(print))
    thread = threading.Thread(target=watched.run)
    thread.start()
    until(lambda: lines.texts() and lines.events())
    time.sleep(0.2)
    watched.stop()
    thread.join(PATIENCE_S)
    assert lines.texts() == ["red"]


def test_stale_frames_are_counted_and_not_asked_about(tmp_path, monkeypatch):
    """A frame that waits while the engine is busy elsewhere is too old by then."""
    from qwenvl_edge.robotics.watch import watching

    class Late(watching.VlmNode):
        def put_frame(self, pixels, **options):
            super().put_frame(pixels, age_s=60.0 if pixels[0, 0, 0] % 3 else 0.0, **options)

    monkeypatch.setattr(watching, "VlmNode", Late)
    lines, counts = watch(tmp_path, moments(*range(120), pause_s=0.02), ["red<|im_end|>"] * 5, max_age_ms=30_000)
    assert counts.stale >= 1 and counts.answered == 5  # a slow machine drops most of them for newer ones
    assert all(line["frame"] % 3 == 0 for line in lines.lines if "frame" in line)


def test_a_jump_of_the_wall_clock_changes_no_age(tmp_path, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400 * (int(real() * 50) % 2))
    lines, counts = watch(tmp_path, moments(*range(100), pause_s=0.01), ["red<|im_end|>"] * 5)
    assert counts.stale == 0 and all(line["latency_ms"] < 60_000 for line in lines.lines)


def test_a_full_disk_costs_lines_only(tmp_path):
    """The log is on a disk that is full at first: the watch goes on, and what is written later is whole."""
    pytest.importorskip("resource")
    path = tmp_path / "log.jsonl"
    sink, logged = LineFile(path), []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(QwenVLError, match="the line is lost, make room"):
            sink.send(json.dumps({"text": "too long for ten bytes"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sink.send('{"text": "fine"}')
    sink.close()
    assert path.read_text() == '{"text": "fine"}\n' and logged == []
    with pytest.raises(QwenVLError, match="No space left on device"):
        LineFile("/dev/full").send("x")


def test_a_thousand_frames_leave_no_trace(tmp_path):
    """A thousand frames and a hundred answers over lost and found cameras: memory and threads stay level."""
    script = []
    for round_ in range(10):
        script += [*range(100), FrameError(f"unplugged {round_}.")]

    def level():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    watch(tmp_path, moments(*range(200), pause_s=0.001), ["red<|im_end|>"] * 20)
    before, threads = level(), threading.active_count()
    _, counts = watch(tmp_path, moments(*script, pause_s=0.001), ["red<|im_end|>"] * 100)
    assert counts.answered == 100 and threading.active_count() <= threads
    assert level() - before < 30 << 20


def test_systemd_hears_that_the_service_lives(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        watch(tmp_path, moments(1, 2, 3, pause_s=0.01), ["red<|im_end|>"])
        heard = [manager.recv(100).decode() for _ in range(3)]
    assert heard[0] == "READY=1" and heard[-1] in ("STOPPING=1", "WATCHDOG=1") and "WATCHDOG=1" in heard
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not systemd.notify("READY=1")


def test_a_watch_that_hangs_tells_systemd_nothing(tmp_path, monkeypatch):
    """WatchdogSec restarts it then; one that goes on tells again."""
    hanging, go_on = threading.Event(), threading.Event()

    class Hanging:
        """An engine whose first answer does not come."""

        def __getattr__(self, name):
            return getattr(answering, name)

        def stream(self, *arguments, **options):
            hanging.set()
            assert go_on.wait(PATIENCE_S)
            return answering.stream(*arguments, **options)

    answering = engine(tmp_path, *["red<|im_end|>"] * 3)[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        watching = Watch(Hanging(), moments(*range(200), pause_s=0.01), WatchSettings("What?"), [], Messages(print))
        thread = threading.Thread(target=watching.run)
        thread.start()
        assert hanging.wait(PATIENCE_S)
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while manager.recv(100):
                pass
        manager.settimeout(3 * watching_module._IDLE_S)
        with pytest.raises(TimeoutError):
            manager.recv(100)
        go_on.set()
        manager.settimeout(PATIENCE_S)
        assert manager.recv(100) == b"WATCHDOG=1"
        watching.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_the_program(nano, tmp_path, capsys):
    """As a user runs it, on a video of the demo picture; the answer is the engine's."""
    from PIL import Image

    from support.paths import ROOT

    picture = np.asarray(Image.open(ROOT / "models" / "nano" / "demo.png").convert("RGB"))
    video = write_video(tmp_path / "demo.mp4", [picture] * 30, rate=30)
    command = ["watch", str(video), "What does the sign say?", "--bundle", str(nano), "--threads", "1"]
    assert main([*command, "--every", "100ms", "--on-change", "--count", "2"]) == 0
    said = capsys.readouterr()
    (line,) = [json.loads(each) for each in said.out.splitlines()]
    assert (
        line["text"] == "EXIT" and line["camera"] == str(video) and line["size"] == [picture.shape[1], picture.shape[0]]
    )
    assert re.search(r"qwenvl: \d answers, 1 lines; .* 0 errors\n$", said.err)
    log = tmp_path / "log.jsonl"
    assert main([*command, "--count", "1", "--log", str(log)]) == 0
    assert json.loads(log.read_text())["text"] == "EXIT" and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["missing.mp4", "What?"], "there is no video file at 'missing.mp4'"),
        (["lavfi:testsrc", "What?", "--hold", "0"], "--hold is 0; give at least 1"),
        (["lavfi:testsrc", "What?", "--camera-option", "size"], "write NAME=VALUE"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, match, capsys):
    assert main(["watch", *arguments, "--bundle", "none"]) == 2
    assert re.search(match, capsys.readouterr().err)
