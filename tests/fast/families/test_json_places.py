import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_edge.families.boxes import place
from qwenvl_edge.families.json_places import JsonReader
from qwenvl_edge.families.pieces import PictureLayout
from qwenvl_edge.families.places import Box, Point, Quad
from support.families import family_of

CUP = ("cup", ((1, 2), (30, 40)))


def read(text, grid=1000, pieces=1):
    reader = JsonReader(grid)
    reader.begin()
    step = max(1, -(-len(text) // pieces))
    clean = "".join(reader.feed(text[start : start + step]) for start in range(0, len(text), step)) + reader.finish()
    assert clean == text
    return reader


def shapes(text, grid=1000):
    return [(shape.label, shape.points) for shape in read(text, grid).shapes]


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]',
        '```json\n[\n\t{"bbox_2d": [1, 2, 30, 40], "label": "cup"}\n]\n```',
        'Here it is: {"label": "cup", "bbox_2d": [1, 2, 30, 40]}. Anything else?',
        "[{'bbox_2d': [1, 2, 30, 40], 'label': 'cup'},]",
        '[{"bbox_2d": [1, 2, 30, 40,], "label": "cup",},]',
        "{bbox_2d: [1, 2, 30, 40], label: cup}",
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}, {"bbox_2d": [5, 6',
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}, {"bbox',
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}',
        '{"objects": [{"bbox_2d": [1, 2, 30, 40], "label": "cup"}], "count": 1}',
        '[{"bbox_2d": [1.2, 2.4, 30.0, 39.6], "label": "cup"}]',
        '[{"bbox_2d": [[1, 2, 30, 40]], "label": " cup "}]',
        '[{"bbox_2d": [1, 2, 30, 40], "text_content": "cup"}]',
        'a } or ] or [ b { c: [{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]',
    ],
)
def test_boxes_are_read_from_whatever_is_around_them(text):
    assert shapes(text) == [CUP]


def test_labels_points_and_quads():
    text = (
        '[{"point_2d": [7, 8], "label": "the dog\'s nose"}, {"bbox_2d": [1, 2, 3, 4, 5, 6, 7, 8], "label": "\\u72d7"},'
        ' {"bbox_2d": [1, 2, 3, 4]}, {"point_2d": [[1, 2], [3, 4]], "label": "b"}]'
    )
    reader = read(text)
    assert [(shape.label, len(shape.points), shape.ref) for shape in reader.shapes] == [
        ("the dog's nose", 1, 0),
        ("狗", 4, 1),
        ("", 2, None),
        ("b", 1, 2),
        ("b", 1, 2),
    ]
    assert reader.labels == ["the dog's nose", "狗", "b"]
    assert [text[shape.offset] for shape in reader.shapes] == ["{"] * 5


def test_apostrophes_do_not_end_labels_in_single_quotes():
    assert shapes("[{'bbox_2d': [1, 2, 3, 4], 'label': 'dog's bowl'}]") == [("dog's bowl", ((1, 2), (3, 4)))]


@pytest.mark.parametrize(
    "item",
    [
        '{"bbox_2d": [1, 2, 30], "label": "cup"}',
        '{"bbox_2d": "1, 2, 30, 40", "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 1001], "label": "cup"}',
        '{"bbox_2d": [-1, 2, 30, 40], "label": "cup"}',
        '{"bbox_2d": [true, 2, 30, 40], "label": "cup"}',
        '{"point_2d": [1, 2, 3]}',
    ],
)
def test_items_without_a_place_are_malformed(item):
    reader = read(f"so: [{item}]")
    assert (reader.shapes, reader.malformed, reader.labels) == ([], [item], [])


def test_pixels_have_no_upper_limit():
    assert shapes('[{"bbox_2d": [1, 2, 1500, 4000], "label": "a"}]', grid=None) == [("a", ((1, 2), (1500, 4000)))]


def test_places_of_the_prompt_are_no_answer():
    reader = JsonReader(1000)
    reader.feed('[{"bbox_2d": [1, 2, 3, 4], "label": "example"}, {"bbox_2d": [')
    reader.begin()
    reader.feed('5, 6, 7, 8], "label": "cup"}]')
    reader.finish()
    assert [shape.label for shape in reader.shapes] == ["cup"]


value = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bbox_2d", "a", "label"]), inner),
    max_leaves=8,
)


@given(value, st.text(alphabet="{}[]\",':ab12e9. \\n\n", max_size=12), st.integers(0, 80), st.integers(1, 7))
def test_any_text_is_read_to_its_end(value, around, cut, pieces):
    text = (around + json.dumps(value) + around)[: cut * 3]
    reader = read(text, pieces=pieces)
    assert all(0 <= number <= 1000 for shape in reader.shapes for point in shape.points for number in point)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.text(max_size=9)), max_size=5))
def test_what_json_writes_is_read(points):
    text = json.dumps([{"point_2d": [x, y], "label": label} for x, y, label in points])
    assert shapes(text) == [(label.strip(), ((x, y),)) for x, y, label in points]


def test_a_long_broken_answer_is_read_in_time():
    text = "[{" * 20_000 + '{"bbox_2d": [1, 2, 3, 4]}'
    assert shapes(text[-5000:]) == [("", ((1, 2), (3, 4)))]


@pytest.mark.parametrize(
    ("name", "points", "wanted"),
    [
        ("qwen2_vl", ((0, 0), (500, 1000)), (0, 0, 200, 300)),
        ("qwen3_vl", ((0, 0), (500, 1000)), (0, 0, 200, 300)),
        ("qwen2_5_vl", ((0, 0), (56, 84)), (0, 0, 200, 300)),
        ("qwen2_5_vl", ((56, 0), (150, 90)), (200, 0, 400, 300)),  # a little outside
    ],
)
def test_places_become_pixels_of_the_original_picture(name, points, wanted):
    family, layout = family_of(name), PictureLayout(12, (1, 3, 4))
    scale = functools.partial(family.to_pixels, size=(400, 300), layout=layout)
    if name == "qwen2_5_vl":
        assert layout.grid[2] * family.config.factor == 112
    reader = read(json.dumps([{"bbox_2d": [*points[0], *points[1]], "label": "a"}]), None)
    assert place(reader.shapes, [0], [scale]) == [Box("a", *map(float, wanted), 0)]
    reader = read(json.dumps([{"point_2d": points[1]}, {"bbox_2d": [*points[0], *points[1]] * 2}]), None)
    point, quad = place(reader.shapes, [0, 0], [scale, scale])
    assert isinstance(point, Point) and (point.x, point.y) == wanted[2:]
    assert isinstance(quad, Quad) and len(quad.points) == 4
