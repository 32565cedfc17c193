import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from qwenvl_edge.families.boxes import (
    Markup,
    MarkupReader,
    boxes_of,
    format_points,
    parse_points,
    place,
    quads_of,
    to_pixels,
)
from qwenvl_edge.families.places import Box, Quad, to_grid
from qwenvl_edge.replies import drawing as draw
from qwenvl_edge.replies.drawing import draw_shapes
from support.paths import DATA

GOLDEN = json.loads((DATA / "golden_prompts.json").read_text(encoding="utf-8"))
grid = st.integers(0, 999)
point = st.tuples(grid, grid)
side = st.integers(1, 20_000)


def read(text):
    reader = MarkupReader(Markup())
    clean = reader.feed(text) + reader.finish()
    return clean, reader


@pytest.mark.parametrize("case", GOLDEN["boxes"], ids=lambda case: case["text"][:20])
def test_boxes_of_the_published_parser(case):
    _, reader = read(case["text"])
    boxes = [shape for shape in reader.shapes if len(shape.points) == 2]
    found = [(shape.label, [*shape.points[0], *shape.points[1]]) for shape in boxes]
    assert found == [(box.get("ref", ""), box["box"]) for box in case["boxes"]]


def test_clean_text_keeps_the_words():
    clean, reader = read("<ref>Woman</ref><box>(451,379),(731,806)</box> and<ref> her dog</ref><box>(1,2),(3,4)</box>.")
    assert clean == "Woman and her dog."
    assert [shape.label for shape in reader.shapes] == ["Woman", "her dog"]
    assert [clean[: shape.offset] for shape in reader.shapes] == ["Woman", "Woman and her dog"]
    assert reader.malformed == []


def test_several_boxes_share_the_label_before_them():
    _, reader = read("<ref>dog</ref><box>(1,2),(3,4)</box> <box>(5,6),(7,8)</box> and <box>(0,0),(1,1)</box>")
    assert [shape.label for shape in reader.shapes] == ["dog", "dog", ""]


def test_quads():
    clean, reader = read("<ref>EXIT</ref><quad>(1,2),(30,4),(31,60),(2, 61)</quad>")
    assert clean == "EXIT"
    assert reader.shapes[0].points == ((1, 2), (30, 4), (31, 60), (2, 61))


@pytest.mark.parametrize(
    ("text", "malformed", "clean"),
    [
        ("a <box>(1,2),(3", ["<box>(1,2),(3"], "a "),
        ("<ref>dog", ["<ref>dog"], "dog"),
        ("<ref>dog<box>(1,2),(3,4)</box>", ["<ref>dog"], "dog"),
        ("<box>(1,2),(3,4)<box>(1,2),(3,4)</box>", ["<box>(1,2),(3,4)"], ""),
        ("x</box>y", ["</box>"], "xy"),
        ("<box>(1,2),(3,4)</ref>", ["<box>(1,2),(3,4)", "</ref>"], ""),
        ("<box>(1,2),(3,1001)</box>", ["<box>(1,2),(3,1001)</box>"], ""),
        ("<box>(1,2)</box>", ["<box>(1,2)</box>"], ""),
        ("<box>(1,2),(3,4),(5,6)</box>", ["<box>(1,2),(3,4),(5,6)</box>"], ""),
        ("<box>left</box>", ["<box>left</box>"], ""),
        ("<quad>(1,2),(3,4)</quad>", ["<quad>(1,2),(3,4)</quad>"], ""),
        ("<quad></quad>", ["<quad></quad>"], ""),
        ("1 < 2, <b> and <bo", [], "1 < 2, <b> and <bo"),
    ],
)
def test_malformed_markup_is_reported_and_words_survive(text, malformed, clean):
    found, reader = read(text)
    assert (reader.malformed, found) == (malformed, clean)


fragment = st.sampled_from([*Markup().tags, "(1,2),(3,4)", "<", "<bo", "</", "狗", " "])
pieces = st.lists(fragment | st.text(max_size=5), max_size=12)


@given(pieces, st.lists(st.integers(0, 60), max_size=6))
def test_reading_in_pieces_equals_reading_at_once(parts, cuts):
    text = "".join(parts)
    clean, whole = read(text)
    reader = MarkupReader(Markup())
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces_read = [reader.feed(text[a:b]) for a, b in itertools.pairwise(bounds)]
    assert not any(tag in piece for piece in pieces_read for tag in Markup().tags)
    assert "".join(pieces_read) + reader.finish() == clean
    assert (reader.shapes, reader.malformed) == (whole.shapes, whole.malformed)


@given(st.lists(point, min_size=2, max_size=2) | st.lists(point, min_size=4, max_size=4))
def test_notation_round_trip(points):
    assert parse_points(format_points(points), corners=len(points)) == tuple(points)


@given(point, side, side)
def test_grid_to_pixels_and_back(grid_point, width, height):
    assert to_grid(to_pixels([grid_point], (width, height)), (width, height)) == (grid_point,)


@given(st.floats(0, 1), st.floats(0, 1), side, side)
def test_pixels_to_grid_is_within_one_step(x, y, width, height):
    pixels = [(x * width, y * height)]
    ((gx, gy),) = to_grid(pixels, (width, height))
    assert 0 <= gx <= 999 and 0 <= gy <= 999
    ((px, py),) = to_pixels([(gx, gy)], (width, height))
    assert abs(px - pixels[0][0]) <= width / 1000 + 1e-6 and abs(py - pixels[0][1]) <= height / 1000 + 1e-6


def test_pixels_outside_the_picture_are_clamped():
    assert to_grid([(-5.0, 900.0)], (100, 200)) == ((0, 999),)


@given(point, point, st.tuples(side, side))
def test_a_box_goes_back_to_where_it_came_from(a, b, size):
    _, reader = read(f"<box>{format_points([a, b])}</box>")
    (box,) = place(reader.shapes, [0], [functools.partial(to_pixels, size=size)])
    assert box.to_grid(size) == (min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1]))


def test_places_are_scaled_to_their_own_picture_and_ordered():
    _, reader = read("<ref>a</ref><box>(500,900),(100,200)</box><quad>(0,0),(1000,0),(1000,1000),(0,1000)</quad>")
    places = place(reader.shapes, [1, 0], [functools.partial(to_pixels, size=size) for size in ((10, 20), (2000, 100))])
    boxes, quads = boxes_of(places), quads_of(places)
    assert boxes == (Box("a", 200.0, 20.0, 1000.0, 90.0, 1),)
    assert quads == (Quad("a", ((0.0, 0.0), (10.0, 0.0), (10.0, 20.0), (0.0, 20.0)), 0),)


@pytest.mark.parametrize("label", ["red mug", "", "two\nlines", "狗", "far too long a label " * 5])
@pytest.mark.parametrize("corner", [(0, 0, 20, 20), (180, 80, 200, 100), (50, 30, 150, 90)])
def test_drawing_marks_the_outline_and_stays_inside(label, corner):
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_shapes(image, [Box(label, *map(float, corner), image=0)])
    assert drawn.size == (200, 100)
    coloured = (np.asarray(drawn) != 255).any(axis=2)
    x1, y1, x2, y2 = (min(value, bound) for value, bound in zip(corner, (199, 99, 199, 99), strict=True))
    assert coloured[(y1 + y2) // 2, x1] and coloured[y2, (x1 + x2) // 2]


def test_chinese_labels_need_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(draw, "_system_fonts", lambda: ())
    every = bytes(byte for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF) for byte in (row, cell))
    chinese = every.decode("gb2312", "ignore")
    assert len(chinese) == 6763
    for label in (chinese, "红色 mug，2 个", "Ça va, Żółć?"):
        text, font = draw._printable(label, 12)
        assert text == label and font.path == str(draw._LABEL_FONT)
    assert draw._printable("red mug", 12)[1].getname() == ImageFont.load_default(12).getname()

    glyphs = {bytes(font.getmask(char)) for char in chinese}
    assert len(glyphs) > 6700  # a few look alike at 12 pixels
    drawn = [np.asarray(draw_shapes(Image.new("RGB", (200, 100)), [Box(c, 50, 50, 90, 90, 0)])) for c in "狗猫"]
    assert (drawn[0] != drawn[1]).sum() > 30


def test_labels_without_a_font_are_escaped(monkeypatch):
    monkeypatch.setattr(draw, "_system_fonts", lambda: ())
    assert draw._printable("개 dog", 12)[0] == "\\uac1c dog"


def test_long_labels_are_shortened_to_the_picture():
    image = Image.new("RGB", (80, 40), "white")
    canvas = ImageDraw.Draw(image)
    text, font = draw._printable("a label " * 20, 11)
    shown = draw._shorten(canvas, text, font, 70)
    assert shown.endswith("...") and canvas.textlength(shown, font=font) <= 70


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2000, 10)])
def test_drawing_on_tiny_pictures(size):
    image = Image.new("RGB", size)
    shapes = [Box("x", 0.0, 0.0, float(size[0]), float(size[1]), 0)]
    assert draw_shapes(image, shapes, [Quad("q", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)), 0)]).size == size
