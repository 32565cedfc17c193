"""Large pictures, which processes decode: the same pixels, one sentence for what cannot be, nothing left over."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from qwenvl_edge import ImageError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.inputs.shrink import shrunk
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
