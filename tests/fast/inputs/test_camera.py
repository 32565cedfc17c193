import threading
import time

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import FrameSource
from qwenvl_edge.errors import FrameError, ImageError
from support.clock import moved_clock
from support.scripted import engine


def frame(shade):
    return np.full((4, 6, 3), shade, np.uint8)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    return moved_clock(monkeypatch, "inputs.camera")


def test_the_newest_frame_wins():
    source = FrameSource()
    for shade in range(5):
        source.put(frame(shade))
    taken = source.take()
    assert (taken.number, taken.picture.pixels[0, 0, 0], source.dropped) == (4, 4, 4)
    source.put(frame(9))
    assert (source.take().number, source.dropped) == (5, 4)


def test_frames_of_a_jetson_camera(tmp_path):
    nv12 = np.full((6, 6), 128, np.uint8)
    nv12[:4] = 235
    qwen, _ = engine(tmp_path)
    for load in (None, qwen.load_picture):
        source = FrameSource(channel_order="nv12", load=load)
        source.put(nv12)
        assert source.take().picture.pixels.tolist() == np.full((4, 6, 3), 255).tolist()
        with pytest.raises(ImageError, match=r"frame 1 is an array of shape \[4, 6, 3\]; NV12"):
            source.put(frame(0))


def test_a_frame_is_a_copy_of_the_cameras_buffer():
    source = FrameSource(channel_order="bgr")
    buffer = np.zeros((2, 2, 3), np.uint8)
    buffer[..., 0] = 7
    source.put(buffer)
    buffer[:] = 255
    assert source.take().picture.pixels[0, 0].tolist() == [0, 0, 7]


def test_ages(clock):
    source = FrameSource()
    source.put(frame(0), captured=99.9)
    clock.now = 100.15
    taken = source.take(max_age_ms=251)
    assert taken.captured == 99.9 and taken.age_ms == pytest.approx(250)


def test_stale_frames_are_refused(clock):
    source = FrameSource()
    source.put(frame(0))
    clock.now += 0.3
    with pytest.raises(FrameError, match="frame 0 is 300 ms old, older than the limit of 250 ms"):
        source.take(max_age_ms=250)
    assert source.dropped == 1
    source.put(frame(1))
    assert source.take(max_age_ms=250).number == 1


def test_a_capture_time_of_another_clock_is_refused(clock):
    with pytest.raises(FrameError, match=r"time\.monotonic"):
        FrameSource().put(frame(0), captured=1.7e9)


def test_waiting_for_a_frame():
    source, taken = FrameSource(), []
    thread = threading.Thread(target=lambda: taken.append(source.take()))
    thread.start()
    source.put(frame(3))
    thread.join()
    assert taken[0].number == 0
    with pytest.raises(FrameError, match=r"no frame came within 0.01 s"):
        source.take(timeout_s=0.01)


def test_closing_ends_the_wait():
    source, errors = FrameSource(), []

    def work():
        try:
            source.take()
        except FrameError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert not source.closed
    source.close()
    thread.join()
    assert source.closed and errors == ["the frame source is closed; look after the camera."]
    with pytest.raises(FrameError, match="closed"):
        source.put(frame(0))


def test_a_last_frame_can_be_taken_after_closing():
    source = FrameSource()
    source.put(frame(0))
    source.close()
    assert source.take().number == 0


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2), np.float32), np.zeros((0, 2, 3), np.uint8), Image.new("RGB", (2, 2)), "frame.png"]
)
def test_bad_frames_are_refused_where_they_are_put(pixels):
    source = FrameSource()
    with pytest.raises(ImageError, match="frame 0"):
        source.put(pixels)
    with pytest.raises(FrameError):
        source.take(timeout_s=0)


def test_every_frame_is_taken_or_dropped():
    source, taken = FrameSource(), []

    def consume():
        while True:
            try:
                taken.append(source.take().number)
            except FrameError:
                return

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for shade in range(200):
        source.put(frame(shade))
    source.close()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken) and len(taken) + source.dropped == 200 and 199 in taken


def test_a_frame_is_asked_about(tmp_path):
    qwen, backend = engine(tmp_path, "red<|im_end|>")
    source = FrameSource()
    source.put(frame(200))
    reply = qwen.chat("Which colour?", images=[source.take(max_age_ms=60_000).picture])
    assert reply.text == "red" and reply.pictures[0].name == "frame 0" and backend.encoded == 1


def test_a_header_comes_back_with_its_frame():
    source = FrameSource()
    source.put(frame(0), header="first")
    source.put(frame(1), header="second")
    assert source.take().header == "second"


def filled(times, **options):
    """A source with one-coloured frames that were captured at some times, counted from now back to -100 s."""
    source, now = FrameSource(**options), time.monotonic() - 100
    for number, each in enumerate(times):
        source.put(np.full((2, 3, 3), number % 256, np.uint8), captured=now + each)
    return source


def levels(video):
    return [int(frame.pixels[0, 0, 0]) for frame in video.frames]


def test_the_last_seconds_are_a_clip():
    source = filled([each / 10 for each in range(100)], clip_s=4, clip_fps=2)
    video = source.clip(seconds=4, fps=2)
    np.testing.assert_allclose(np.diff(video.times), 0.5, atol=1e-6)
    assert video.times[0] == 0 and 3.4 < video.times[-1] <= 4
    assert levels(video) == [60 + 5 * i for i in range(8)] or levels(video)[-1] >= 95
    shorter = source.clip(seconds=1, fps=1)
    assert levels(shorter) == [levels(video)[-3], levels(video)[-1]]
    assert source.take().number == 99  # the slot is as it was


def test_a_clip_of_a_camera_is_bounded_and_explained():
    assert len(filled([each / 100 for each in range(1000)], clip_s=1, clip_fps=5)._kept) <= 6
    with pytest.raises(FrameError, match=r"keeps no frames for clips; make it with FrameSource\(clip_s=4\)"):
        filled([0]).clip()
    with pytest.raises(FrameError, match="no frame has come yet"):
        FrameSource(clip_s=1).clip()
    with pytest.raises(FrameError, match="more than the 768 frames"):
        FrameSource(clip_s=60, clip_fps=30)
