import struct

import numpy as np
import pytest

from qwenvl_edge import ImageError, QwenVLError, open_video
from qwenvl_edge.inputs.video_files import chosen_frames
from qwenvl_edge.robotics.watch.cameras import Camera

av = pytest.importorskip("av")


def write(path, frames, rate=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in frames:
            pixels = np.full((48, 64, 3), level, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode(None))
    return path


def test_frames_are_spread_over_the_file(tmp_path):
    path = write(tmp_path / "clip.mp4", range(0, 200, 5))  # 40 frames in 4 seconds
    done = []
    video = open_video(path, fps=2, progress=done.append)
    assert [round(time, 2) for time in video.times] == [round(each / 10, 2) for each in (0, 6, 11, 17, 22, 28, 33, 39)]
    assert done == sorted(done) and done[-1] == 1.0
    levels = [frame.mean() for frame in video.frames]
    np.testing.assert_allclose(levels, [5 * round(10 * time) for time in video.times], atol=4)
    assert len(open_video(path, max_frames=5).frames) == 4


@pytest.mark.parametrize(
    ("total", "seconds", "fps", "most", "wanted"),
    [(50, 50 / 30, 2, 768, [0, 16, 33, 49]), (3, 0.1, 2, 768, [0, 2]), (1, 0.1, 2, 768, [0]), (9000, 300, 30, 4, 4)],
)
def test_the_choice_of_frames(total, seconds, fps, most, wanted):
    chosen = chosen_frames(total, seconds, fps, most)
    assert len(chosen) == wanted if isinstance(wanted, int) else chosen == wanted
    assert chosen[0] == 0 and chosen[-1] == total - 1


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(ImageError, match="cannot open the video"):
        open_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(ImageError, match="cannot be decoded as a video"):
        open_video(tmp_path / "text.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{write(tmp_path / 'a.mp4', [1, 2])}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    with pytest.raises(ImageError, match="cannot be decoded"):  # it may not open the file that it names
        open_video(tmp_path / "list.m3u8")
    with pytest.raises(QwenVLError, match="fps is 0; it must be a positive number"):
        open_video(tmp_path / "a.mp4", fps=0)


FULL = 1 << 16
# Rows a, b, u, c, d, v of the matrix, x to the right and y down; how the frame is shown.
ORIENTATIONS = {
    "as it is": ((FULL, 0, 0, 0, FULL, 0), lambda frame: frame),
    "mirrored": ((-FULL, 0, 0, 0, FULL, 0), lambda frame: frame[:, ::-1]),
    "turned by 180": ((-FULL, 0, 0, 0, -FULL, 0), lambda frame: frame[::-1, ::-1]),
    "upside down": ((FULL, 0, 0, 0, -FULL, 0), lambda frame: frame[::-1]),
    "transposed": ((0, FULL, 0, FULL, 0, 0), lambda frame: frame.swapaxes(0, 1)),
    "clockwise": ((0, FULL, 0, -FULL, 0, 0), lambda frame: np.rot90(frame, -1)),
    "counterclockwise": ((0, -FULL, 0, FULL, 0, 0), np.rot90),
    "transposed and turned": ((0, -FULL, 0, -FULL, 0, 0), lambda frame: frame.swapaxes(0, 1)[::-1, ::-1]),
}


def turned(path, matrix):
    """Write a clip of four colours whose file says how it is to be shown; return its frame as it is stored."""
    quarters = np.zeros((48, 64, 3), np.uint8)
    quarters[:24, :32], quarters[:24, 32:], quarters[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    plain = struct.pack(">6i", *ORIENTATIONS["as it is"][0])
    at = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:at] + struct.pack(">6i", *matrix) + content[at + len(plain) :])
    return quarters


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_videos_of_phones_are_seen_upright(tmp_path, name):
    matrix, shown = ORIENTATIONS[name]
    stored = turned(tmp_path / "clip.mp4", matrix)
    frame = open_video(tmp_path / "clip.mp4").frames[0]
    wanted = shown(stored)
    assert frame.shape == wanted.shape
    assert np.abs(frame.astype(int) - wanted).mean() < 12
    (first, *_) = Camera(str(tmp_path / "clip.mp4")).frames()
    assert first.channel_order == "rgb" and np.array_equal(first.pixels, frame)
