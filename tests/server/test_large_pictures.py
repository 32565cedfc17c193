"""Large pictures and clips, which processes decode: the same pixels, a sentence for what cannot be, nothing left."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import ImageError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.inputs.shrink import shrunk
from qwenvl_edge.inputs.video_files import DecodingLimits, read_video
from qwenvl_edge.server import picture_pool
from qwenvl_edge.server.picture_pool import PicturePool
from support.served import WAIT_S, ask, data_uri, post, until

SEEN = (448, 448)


@pytest.fixture
def pool():
    pool = PicturePool()
    yield pool
    pool.close()


def photograph(size=(2100, 2000), kind="JPEG", **options):
    """A file of a picture that has something everywhere; its bytes."""
    column, row = np.arange(size[0]) % 251, np.arange(size[1])[:, None] % 241
    pixels = np.stack(np.broadcast_arrays(column, row, (column + row) % 256), -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def both(size, seen=SEEN):
    return {size: seen, size[::-1]: seen}


@pytest.mark.parametrize("options", [{}, {"exif": exif(6)}, {"kind": "PNG"}, {"kind": "WEBP"}])
def test_pixels_are_those_of_a_picture_decoded_here(pool, options):
    data = photograph(**options)
    expected = shrunk(load_picture(data, name="a"), SEEN)
    found = pool.decode(data, "a", both((2100, 2000)))
    assert np.array_equal(found.pixels, expected.pixels) and not found.pixels.flags.writeable
    assert (found.size, found.digest, found.name) == (expected.size, expected.digest, "a")
    assert found.size == ((2000, 2100) if "exif" in options else (2100, 2000))


def test_a_picture_that_the_model_sees_whole_comes_whole(pool):
    data = photograph((300, 200), "PNG")
    found = pool.decode(data, "a", both((300, 200), (600, 400)))
    assert np.array_equal(found.pixels, load_picture(data).pixels) and found.digest == load_picture(data).digest


def moving(frames=12, size=(96, 64), codec="mpeg4"):
    """A video file of a picture that changes, and one a second; its bytes."""
    av = pytest.importorskip("av", reason="clips need the extra 'video'")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 5 * number, np.uint8)
            pixels[: size[1] // 2] = 255 - 5 * number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


CLIP = {"fps": 2.0, "max_frames": 8, "limits": DecodingLimits()}


def test_the_frames_of_a_clip_are_those_decoded_here(pool):
    data = moving()
    here, asked = read_video(io.BytesIO(data), "a", fps=2.0, max_frames=8), []

    def seen(size, times):
        asked.append((size, list(times)))
        return (56, 28)

    frames, times = pool.decode_clip(data, "a", seen, **CLIP)
    assert times == list(here.seconds) and asked == [((96, 64), times)]
    assert [frame.name for frame in frames] == [f"frame {number} of a" for number in range(len(here.frames))]
    expected = [shrunk(load_picture(frame, name="a"), (56, 28)) for frame in here.frames]
    assert all(np.array_equal(frame.pixels, other.pixels) for frame, other in zip(frames, expected, strict=True))
    assert [(frame.size, frame.digest) for frame in frames] == [((96, 64), other.digest) for other in expected]
    picture = photograph()
    assert pool.decode(picture, "b", both((2100, 2000))).name == "b"  # by the same process
    assert len(pool._idle) == 1


@pytest.mark.parametrize(
    ("data", "limits", "said"),
    [
        (b"no video", {}, "the clip cannot be decoded as a video"),
        (None, {"frame_pixels": 1000}, "the clip has frames of more than 1,000 pixels"),
        (None, {"pixels": 10_000}, "the clip has more than 10,000 pixels in all its frames"),
        (None, {"codecs": ("h264",)}, "the clip holds mpeg4 video; give one of h264"),
    ],
)
def test_a_clip_that_is_refused_is_refused_in_the_same_words(pool, data, limits, said):
    data = moving() if data is None else data
    with pytest.raises(ImageError, match=said):
        pool.decode_clip(data, "the clip", lambda *_: (56, 28), **{**CLIP, "limits": DecodingLimits(**limits)})
    assert pool.decode_clip(moving(), "a", lambda *_: (56, 28), **CLIP)[0]


def test_a_clip_beyond_the_limits_of_its_process_is_said(monkeypatch):
    pytest.importorskip("resource")
    monkeypatch.setattr(picture_pool, "_COMPUTING_CLIP_S", 0.001)
    pool = PicturePool()
    try:
        for _ in range(2):  # a process that ended is replaced
            with pytest.raises(ImageError, match=r"the clip cannot be decoded within the server's limits"):
                pool.decode_clip(moving(40, (640, 480)), "the clip", lambda *_: (56, 28), **CLIP)
    finally:
        pool.close()


def test_damage_is_said_and_the_process_goes_on(pool):
    whole = photograph()
    for data in (whole[: len(whole) // 2], b"no picture", whole[:40] + b"\0" * 500):
        with pytest.raises(ImageError, match="the picture"):
            pool.decode(data, "the picture", both((2100, 2000)))
    ((_, process),) = pool._idle
    assert pool.decode(whole, "a", both((2100, 2000))).size == (2100, 2000)
    assert pool._idle[0][1] is process and process.poll() is None


@pytest.mark.parametrize("limits", [{"megabytes": 8}, {"seconds": 0.001}])
def test_what_is_beyond_the_limits_is_said(limits):
    pytest.importorskip("resource")
    pool = PicturePool(**limits)
    try:
        for _ in range(2):  # a process that ended is replaced
            with pytest.raises(ImageError, match=r"the picture"):
                pool.decode(photograph((5000, 4000), "PNG"), "the picture", both((5000, 4000)))
    finally:
        pool.close()


def test_processes_end_when_they_idle_and_when_the_pool_is_closed():
    pool = PicturePool(idle_s=0.2)
    pool.decode(photograph(), "a", both((2100, 2000)))
    ((_, process),) = pool._idle
    until(lambda: process.poll() is not None)
    assert not pool._idle and process.returncode == 0
    pool.decode(photograph(), "a", both((2100, 2000)))
    ((_, process),) = pool._idle
    pool.close()
    assert process.poll() == 0


def test_this_process_computes_next_to_nothing_meanwhile(pool):
    data = photograph((5000, 4900), "PNG", compress_level=1)
    pool.decode(data, "a", both((5000, 4900)))  # the process is there

    def computing_s(decode):
        before = time.process_time()
        decode()
        return time.process_time() - before

    outside = computing_s(lambda: pool.decode(data, "a", both((5000, 4900))))
    assert outside < computing_s(lambda: shrunk(load_picture(data), SEEN)) / 4


def test_a_server_answers_about_a_large_picture(http, tmp_path):
    small = Image.open(io.BytesIO(photograph((448, 448), "PNG")))
    small.resize((2688, 2688), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    response = post(http, ask(url=data_uri(tmp_path / "large.png"), max_tokens=4), timeout=WAIT_S)
    assert response.status_code == 200 and response.json()["choices"][0]["message"]["qwenvl"]["images_encoded"] == 1
