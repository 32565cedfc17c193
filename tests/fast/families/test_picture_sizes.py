import pytest

from qwenvl_edge import ImageError, PromptError
from qwenvl_edge.families.picture_sizes import Bounds, frame_size, picture_size, whole_clip_size
from qwenvl_edge.families.pieces import NO_LIMITS, PixelLimits

TWO = Bounds(28, 3136, 1280 * 28**2)
THREE = Bounds(32, 65536, 1280 * 32**2)


@pytest.mark.parametrize(
    ("bounds", "size", "tokens"),
    [
        (TWO, (640, 480), 391),
        (TWO, (448, 448), 256),
        (THREE, (640, 480), 300),
        (THREE, (448, 448), 196),
        (THREE, (224, 224), 64),
    ],
)
def test_tokens_of_common_pictures(bounds, size, tokens):
    width, height = picture_size(*size, bounds)
    assert width * height // bounds.factor**2 == tokens


def test_a_callers_limit_moves_the_other_bound():
    assert TWO.within(NO_LIMITS) == TWO
    assert TWO.within(PixelLimits(max_pixels=784)) == Bounds(28, 784, 784)
    assert TWO.within(PixelLimits(min_pixels=2_000_000)) == Bounds(28, 2_000_000, 2_000_000)
    assert picture_size(640, 480, TWO.within(PixelLimits(max_pixels=784))) == (28, 28)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (PixelLimits(max_pixels=783), "max_pixels is 783, which leaves no token: one stands for 28x28 pixels"),
        (PixelLimits(5000, 4000), "min_pixels is 5000, more than max_pixels, 4000; exchange them"),
        (PixelLimits(min_pixels=0), "min_pixels is 0; give a whole number"),
        (PixelLimits(max_pixels=1e6), "max_pixels is 1000000.0; give a whole number"),
    ],
)
def test_impossible_limits(limits, error):
    with pytest.raises(PromptError, match=error):
        TWO.within(limits)


def test_a_long_clip_has_smaller_frames():
    short, long = (frame_size(1280, 720, frames, Bounds(28, 3136, 24576 * 784)) for frames in (4, 512))
    assert short[0] * short[1] <= 768 * 784 < short[0] * short[1] * 1.1
    assert long[0] * long[1] <= 96 * 784
    assert frame_size(1280, 720, 768, Bounds(28, 100_352, 784)) == (420, 224)  # no less than the least of a frame


def test_a_whole_clip_has_a_budget():
    width, height = whole_clip_size(1280, 720, 9, 10, Bounds(32, 4096, 10 * 64 * 64 * 4))
    assert 10 * width * height <= 10 * 64 * 64 * 4
    assert whole_clip_size(640, 480, 2, 2, Bounds(32, 4096, 25_165_824)) == (640, 480)


@pytest.mark.parametrize("of", [frame_size, whole_clip_size])
def test_thin_clips_are_refused(of):
    arguments = (2, TWO) if of is frame_size else (2, 2, TWO)
    with pytest.raises(ImageError, match="the clip has 1x400 pixels"):
        of(1, 400, *arguments)
