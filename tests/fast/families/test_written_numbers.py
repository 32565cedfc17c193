import pytest

from qwenvl_edge.families.boxes import Markup, MarkupReader, WrittenNumbers
from qwenvl_edge.families.json_places import JsonReader, finite


def ten_times(text, reader):
    """The answer with the numbers of its places ten times as large."""
    reader.begin()
    assert reader.feed(text) + reader.finish()
    written = WrittenNumbers(text)
    for shape in reader.shapes:
        numbers = [value for point in shape.points for value in point]
        written.replace(shape.source, numbers, [10 * value for value in numbers])
    return written.text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "1 2"}]', '[{"bbox_2d": [10, 20, 30, 40], "label": "1 2"}]'),
        ('{"bbox_2d": [[1, 2, 3, 4], [1, 2, 3, 4]]} 1, 2', '{"bbox_2d": [[10, 20, 30, 40], [10, 20, 30, 40]]} 1, 2'),
        ('{"point_2d": [1, 2], "bbox_2d": [1, 2, 3, 4]}', '{"point_2d": [10, 20], "bbox_2d": [10, 20, 30, 40]}'),
        ('{"bbox_2d": [1.2, 2.4, -3.0, .6]}', '{"bbox_2d": [10, 20, -30, 10]}'),
        ('{"bbox_2d": [007, 1e1, +3, 4]}', '{"bbox_2d": [70, 100, 30, 40]}'),
        ('{"point_2d": [1, 2]} {"point_2d": [1, 2]} [1, 2]', '{"point_2d": [10, 20]} {"point_2d": [10, 20]} [1, 2]'),
    ],
)
def test_numbers_of_places_in_json_are_replaced_as_they_are_written(text, wanted):
    assert ten_times(text, JsonReader(None)) == wanted


def test_numbers_of_places_in_tags_are_replaced():
    box = "<box>(1,2),(3,4)</box>"
    text = f"1,2 <ref>a</ref>{box}{box} and (1,2) <box>(01,2),(3,4)</box><quad>(1,2),(3,4),(5,6),(7,8)</quad>"
    wanted = text.replace("(1,2),(3", "(10,20),(30").replace("(01,2),(3", "(10,20),(30").replace(",4)", ",40)")
    wanted = wanted.replace("(5,6),(7,8)", "(50,60),(70,80)")
    assert ten_times(text, MarkupReader(Markup())) == wanted


def test_many_places_of_one_item_are_replaced_in_their_order():
    text = f'{{"point_2d": [{", ".join(f"[{number}, {number % 7}]" for number in range(3000))}]}}'
    wanted = f'{{"point_2d": [{", ".join(f"[{10 * number}, {number % 7 * 10}]" for number in range(3000))}]}}'
    assert ten_times(text, JsonReader(None)) == wanted


def test_numbers_that_no_float_holds_become_the_largest():
    assert finite("1e999") == -finite("-1e999") == max(finite("9" * 5000), finite("7")) < float("inf")


def test_places_in_json_lie_where_places_can():
    reader = JsonReader(None)
    reader.begin()
    reader.feed(f'{{"bbox_2d": [1e999, 2, 3, 4]}} {{"bbox_2d": [{"9" * 5000}, 2, 3, 4]}} {{"point_2d": [1e300, -1]}}')
    reader.finish()
    assert not reader.shapes and len(reader.malformed) == 3
