import math

import numpy as np
import pytest

from qwenvl_edge import ImageError, Video, load_picture
from qwenvl_edge.inputs.clips import load_clip
from support.families import family_of

FRAMES = [np.full((56, 84, 3), level, np.uint8) for level in range(5)]


def load(source, name):
    return load_picture(source, name=name)


def test_times_come_from_the_rate():
    assert Video(FRAMES).times == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert Video(np.stack(FRAMES), fps=4).times == [0.0, 0.25, 0.5, 0.75, 1.0]
    clip = load_clip(Video(FRAMES, times=[3, 4, 5, 6, 8]), load, "clip 1")
    assert (clip.times, clip.size, len(clip.frames)) == ((3.0, 4.0, 5.0, 6.0, 8.0), (84, 56), 5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"frames": []}, "has no frames"),
        ({"frames": FRAMES * 200}, "has 1,000 frames, more than 768"),
        ({"frames": FRAMES, "fps": 0}, "fps of the clip is 0; it must be a positive number"),
        ({"frames": FRAMES, "fps": math.nan}, "fps of the clip is nan"),
        ({"frames": FRAMES, "fps": 2, "times": [0, 1, 2, 3, 4]}, "both fps and times"),
        ({"frames": FRAMES, "times": [0, 1]}, "5 frames but 2 times"),
        ({"frames": FRAMES, "times": [0, 1, 2, 1.5, 4]}, r"run back: frame 3 comes 1.5 s, frame 2 2 s"),
        ({"frames": FRAMES, "times": [0, 1, 2, 2, 4]}, "run back"),
        ({"frames": FRAMES, "times": [0, 1, 2, math.inf, 4]}, "an entry of times is inf"),
    ],
)
def test_impossible_clips(arguments, error):
    with pytest.raises(ImageError, match=error):
        Video(**arguments)


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ImageError, match="frame 1 of clip 1 has 28x28 pixels, the first one 84x56"):
        load_clip(Video([FRAMES[0], FRAMES[0][:28, :28]]), load, "clip 1")
    with pytest.raises(ImageError, match="clip 1 is of type list; give a Video"):
        load_clip(FRAMES, load, "clip 1")


def test_a_clip_is_known_by_its_frames_in_order():
    one, same, other = (load_clip(Video(frames), load, "c") for frames in (FRAMES, FRAMES, FRAMES[::-1]))
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_an_odd_frame_fills_its_patches(name):
    clip = load_clip(Video(FRAMES), load, "c")
    values = clip.vision_inputs(family_of(name))["pixel_values"]
    side = family_of(name).config.patch_size
    assert len(values) == 3
    parts = values.reshape(3, -1, 3, 2, side * side)
    np.testing.assert_array_equal(parts[2, :, :, 0], parts[2, :, :, 1])
    assert (parts[:2, :, :, 0] < parts[:2, :, :, 1]).all()  # each frame is brighter than the one before
