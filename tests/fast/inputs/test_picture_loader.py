import weakref

import numpy as np
from PIL import Image

from qwenvl_edge.inputs.picture_loader import PictureLoader
from qwenvl_edge.inputs.pictures import load_picture


def no_frames(source, channel_order, name):
    """What a backend on the CPU loads."""


def test_pixels_that_come_again_are_the_picture_that_came_before():
    loader = PictureLoader("rgb", no_frames)
    frame = np.random.default_rng(3).integers(0, 256, (9, 7, 3), np.uint8)
    first = loader.load(frame, "picture 1")
    assert loader.load(frame.copy(), "picture 2") is first
    assert loader.load(Image.fromarray(frame), "picture 3") is first and loader.load(first, "picture 4") is first
    for row in range(9):  # also where the rows that are looked at first are equal
        other = frame.copy()
        other[row, 0, 0] += 1
        assert loader.load(other, "picture").digest == load_picture(other).digest != first.digest
    turned = loader.load(frame.reshape(7, 9, 3), "picture")
    assert turned.digest != first.digest


def test_pictures_are_not_kept_for_comparing():
    loader = PictureLoader("bgr", no_frames)
    frame = np.zeros((9, 7, 3), np.uint8)
    reference = weakref.ref(loader.load(frame, "picture"))
    assert reference() is None
    assert loader.load(frame, "again").name == "again"
