"""Labels of drawn shapes: apart where there is room, inside the picture, always at the same place."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_edge.families.places import Box
from qwenvl_edge.replies import drawing as draw
from qwenvl_edge.replies.drawing import draw_shapes
from qwenvl_edge.replies.labels import place_labels

PICTURE = (640, 480)
NEARBY = [(100, 200, 300, 400), (105, 203, 310, 380), (102, 198, 250, 300)]


def intersect(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def shapes(picture=PICTURE):
    """A box on the picture, often at its edges or where others are."""
    xs, ys = (st.lists(st.integers(0, side) | st.integers(0, 40), min_size=2, max_size=2) for side in picture)
    return st.builds(lambda xs, ys: (min(xs), min(ys), max(xs), max(ys)), xs, ys)


@given(st.lists(st.tuples(shapes(), st.integers(1, 200), st.integers(8, 40)), max_size=30))
def test_no_label_hides_another_where_there_is_room(labelled):
    boxes, sizes = [box for box, *_ in labelled], [(width, height) for _, width, height in labelled]
    for number, (width, height) in enumerate(sizes):
        # All that earlier labels take away from the places of this one's corner leaves some over.
        taken = sum((other[0] + width) * (other[1] + height) for other in sizes[:number])
        assume(taken < (PICTURE[0] - width) * (PICTURE[1] - height))
    places = place_labels(boxes, sizes, PICTURE)
    assert [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in places] == sizes
    assert all(min(x1, y1) >= 0 and x2 <= PICTURE[0] and y2 <= PICTURE[1] for x1, y1, x2, y2 in places)
    assert not any(intersect(*pair) for pair in itertools.combinations(places, 2))
    assert places == place_labels(boxes, sizes, PICTURE)


@given(st.lists(shapes((90, 60)), min_size=10, max_size=20))
def test_without_room_labels_stay_in_the_picture(boxes):
    places = place_labels(boxes, [(50, 20)] * len(boxes), (90, 60))
    assert [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in places] == [(50, 20)] * len(boxes)
    assert all(min(x1, y1) >= 0 and x2 <= 90 and y2 <= 60 for x1, y1, x2, y2 in places)
    distinct = [place for place in places if not any(intersect(place, other) for other in places if other is not place)]
    assert len(distinct) <= 3  # no more fit: 90 x 60 holds three of 50 x 20 on top of each other


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((100, 100, 300, 200), (100, 80, 160, 100)),  # above
        ((100, 10, 300, 200), (100, 200, 160, 220)),  # below
        ((100, 10, 300, 470), (100, 10, 160, 30)),  # inside
        ((620, 100, 640, 200), (580, 80, 640, 100)),  # moved into the picture
    ],
)
def test_a_label_stands_at_its_shape(box, place):
    assert place_labels([box], [(60, 20)], PICTURE) == [place]


def test_a_label_of_the_picture_s_size_covers_it():
    assert place_labels([(0, 0, 9, 9), (0, 0, 9, 9)], [(10, 10)] * 2, (10, 10)) == [(0, 0, 10, 10)] * 2


def test_every_label_of_nearby_boxes_is_read(monkeypatch):
    labels = ["the red mug", "the blue plate", "杯子"]
    boxes = [Box(label, *map(float, corners), image=0) for label, corners in zip(labels, NEARBY, strict=True)]
    seen = []
    monkeypatch.setattr(draw, "place_labels", lambda *arguments: seen.append(place_labels(*arguments)) or seen[-1])
    together = np.asarray(draw_shapes(Image.new("RGB", PICTURE, "white"), boxes))
    assert len(seen[0]) == 3 and not any(intersect(*pair) for pair in itertools.combinations(seen[0], 2))
    for number, (x1, y1, x2, y2) in enumerate(seen[0]):
        # What is drawn there is the label alone: its colour, and ink on it.
        pixels, counts = np.unique(together[y1:y2, x1:x2].reshape(-1, 3), axis=0, return_counts=True)
        colour = tuple(int(draw._COLOURS[number][i : i + 2], 16) for i in (1, 3, 5))
        assert tuple(pixels[counts.argmax()]) == colour and 0.1 < 1 - counts.max() / counts.sum() < 0.8
    again = np.asarray(draw_shapes(Image.new("RGB", PICTURE, "white"), boxes))
    assert (again == together).all()
