"""The cameras of `qwenvl watch`: files, FFmpeg's filters, real streams, GStreamer."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from qwenvl_edge import QwenVLError
from qwenvl_edge.errors import FrameError
from qwenvl_edge.inputs.camera import FrameSource
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.watch.cameras import Camera
from qwenvl_edge.robotics.watch.watching import Watch, WatchSettings
from support.moments import free_port
from support.patience import PATIENCE_S, until
from support.scripted import engine
from support.watched import Lines, shade, watch, write_video

av = pytest.importorskip("av", reason="the extra camera is not installed")

SOURCE = "lavfi:testsrc=size=64x48:rate=20"
pytestmark = pytest.mark.usefixtures("quick_retries")


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
