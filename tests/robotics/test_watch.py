"""`qwenvl watch`: real streams, and what a day does to a camera, shortened."""

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.cli.program import main
from qwenvl_edge.errors import FrameError
from qwenvl_edge.inputs.camera import FrameSource
from qwenvl_edge.machine import systemd
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.watch import capture as capturing
from qwenvl_edge.robotics.watch.cameras import Camera
from qwenvl_edge.robotics.watch.sinks import LineFile
from qwenvl_edge.robotics.watch.watching import ChangeFilter, Watch, WatchSettings
from support.moments import free_port, moments
from support.patience import PATIENCE_S, until
from support.scripted import engine

av = pytest.importorskip("av", reason="the extra camera is not installed")

SOURCE = "lavfi:testsrc=size=64x48:rate=20"


class Lines:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.lines = []

    def send(self, line):
        self.lines.append(json.loads(line))

    def close(self):
        pass

    def texts(self):
        return [line["text"] for line in self.lines if "text" in line]

    def events(self):
        return [line["event"] for line in self.lines if "event" in line]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(capturing.Capture.__init__, "__kwdefaults__", {"retry_s": 0.01})


def watch(folder, camera, answers, *, logged=None, **settings):
    """Watch until all answers are given; returns the sink and the counts."""
    lines, said = Lines(), [] if logged is None else logged
    chosen = {"every_s": 0.0, "count": len(answers), **settings}
    qwen, _ = engine(folder, *answers)
    watched = Watch(qwen, camera, WatchSettings("What?", **chosen), [lines], Messages(said.append))
    return lines, watched.run()


def write_video(path, frames, *, codec="libx264", rate=10, pixel_format="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def shade(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)


def test_frames_of_a_filter_come_at_their_pace():
    """FFmpeg's test picture twenty times a second, by its own clock."""
    begun, frames = time.monotonic(), []
    with contextlib.closing(Camera(SOURCE).frames()) as source:
        for frame in source:
            frames.append(frame)
            if len(frames) == 11:
                break
    assert time.monotonic() - begun >= 0.4
    assert frames[0].pixels.shape == (48, 64, 3) and frames[0].channel_order == "rgb"
    expected = next(av.open("testsrc=size=64x48:rate=20", format="lavfi").decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_array_equal(frames[0].pixels, expected)


def test_nv12_is_handed_on_as_it_is():
    """The decoder's NV12 goes to the engine unconverted, which makes the same colours of it as a conversion before."""
    with contextlib.closing(Camera("lavfi:testsrc=size=64x48:rate=20,format=nv12").frames()) as source:
        frame = next(source)
    assert frame.channel_order == "nv12" and frame.pixels.shape == (72, 64)
    frames = FrameSource()
    frames.put(frame.pixels, channel_order=frame.channel_order)
    seen = frames.take(timeout_s=0).picture.pixels
    raw = av.VideoFrame.from_ndarray(frame.pixels, format="nv12").to_ndarray(format="rgb24")
    assert np.abs(seen.astype(int) - raw).mean() < 6  # FFmpeg spreads the chroma smoothly


def test_a_video_file_is_watched_to_its_end(tmp_path):
    video = write_video(tmp_path / "a.mp4", [shade(100)] * 5)
    lines, counts = watch(tmp_path, Camera(str(video)), ["red<|im_end|>"] * 9, count=None)
    assert 1 <= counts.answered <= 5 and counts.answered + counts.dropped == 5
    assert set(lines.texts()) == {"red"} and lines.events() == []
    assert lines.lines[-1]["frame"] == 4 and lines.lines[-1]["size"] == [64, 48]


@pytest.fixture
def rtsp(tmp_path):
    """An RTSP server of others, which plays the files of a folder; its port."""
    pytest.importorskip("aio_rtsp_toolkit.server", reason="aio-rtsp-toolkit is not installed")
    write_video(tmp_path / "camera.mp4", [shade(60 + each) for each in range(60)], rate=20)
    port = free_port()
    code = (
        "import asyncio, sys; from aio_rtsp_toolkit.server import serve; asyncio.run(serve(sys.argv[1], '127.0.0.1', "
    )
    code += "int(sys.argv[2]), control_port=int(sys.argv[3])))"
    command = [sys.executable, "-c", code, str(tmp_path), str(port), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:

            def listening():
                assert server.poll() is None
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    return True
                return False

            until(listening)
            yield port
        finally:
            server.kill()


def test_an_rtsp_camera(tmp_path, rtsp):
    lines, counts = watch(tmp_path, Camera(f"rtsp://127.0.0.1:{rtsp}/camera.mp4"), ["red<|im_end|>"] * 3)
    assert counts.answered == 3 and lines.lines[0]["size"] == [64, 48]


def test_a_stream_over_tcp_that_ends_and_returns(tmp_path):
    """MPEG transport from a sender that goes away after a moment; the next one is taken up."""
    video = write_video(tmp_path / "a.ts", [shade(80)] * 30, codec="mpeg2video", rate=25).read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _ in range(2):
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(video)

        sender = threading.Thread(target=serve)
        sender.start()
        camera = Camera(f"tcp://127.0.0.1:{server.getsockname()[1]}", {"probesize": "20000"})
        lines = Lines()
        qwen, _ = engine(tmp_path, *["red<|im_end|>"] * 200)
        watched = Watch(qwen, camera, WatchSettings("What?", every_s=0.0), [lines], Messages(print))
        thread = threading.Thread(target=watched.run)
        thread.start()
        until(lambda: lines.events()[:2] == ["camera lost", "camera back"])
        watched.stop()
        thread.join(PATIENCE_S)
        sender.join(PATIENCE_S)
    assert not thread.is_alive()


def test_v4l2_is_opened_by_ffmpeg(monkeypatch):
    """There is no device here: the arguments are looked at, and the error."""
    assert "video4linux2,v4l2" in av.formats_available
    with pytest.raises(FrameError, match="camera '/dev/video77' cannot be read"):
        next(Camera("/dev/video77").frames())
    opened = []

    def note(*arguments, **options):
        opened.append((arguments, options["options"]))
        raise ValueError("enough")

    monkeypatch.setattr(av, "open", note)
    with pytest.raises(FrameError):
        next(Camera("3", {"pixel_format": "nv12"}).frames())
    ((arguments, options),) = opened
    assert arguments == ("/dev/video3", "r", "video4linux2") and options["pixel_format"] == "nv12"


def test_gstreamer_by_opencv(monkeypatch, tmp_path):
    """OpenCV of PyPI has no GStreamer, so that a stand-in gives the frames; its BGR arrives as such."""
    blue = np.zeros((4, 6, 3), np.uint8)
    blue[..., 0] = 200
    reads = iter([(True, blue), (True, np.zeros((6, 6), np.uint8)), (False, None)])
    capture = types.SimpleNamespace(isOpened=lambda: True, read=lambda: next(reads), release=lambda: None)
    registry = types.SimpleNamespace(getBackends=lambda: [1800])
    cv2 = types.SimpleNamespace(CAP_GSTREAMER=1800, videoio_registry=registry, VideoCapture=lambda *given: capture)
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    camera = Camera("gst:videotestsrc ! appsink")
    camera.check()
    frames = camera.frames()
    assert [next(frames).channel_order, next(frames).channel_order] == ["bgr", "nv12"]
    with pytest.raises(FrameError, match="gives no more frames"):
        next(frames)
    registry.getBackends = lambda: []
    with pytest.raises(QwenVLError, match="built without GStreamer"):
        camera.check()


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
            super().put_frame(pixels, age_s=60.0 if pixels[0, 0, 0] % 2 else 0.0, **options)

    monkeypatch.setattr(watching, "VlmNode", Late)
    lines, counts = watch(tmp_path, moments(*range(120), pause_s=0.02), ["red<|im_end|>"] * 5, max_age_ms=30_000)
    assert counts.stale >= 3 and counts.answered == 5
    assert all(line["frame"] % 2 == 0 for line in lines.lines if "frame" in line)


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
