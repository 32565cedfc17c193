"""Names in messages: a long path keeps the file's name."""

from qwenvl_edge.machine.urls import shown


def test_a_short_name_is_whole():
    assert shown("photo.jpg") == "photo.jpg"


def test_a_long_path_keeps_its_begin_and_its_file():
    path = "/home/robot/" + "recordings/" * 20 + "front-camera-0001.png"
    text = shown(path)
    assert text.startswith("/home/robot/") and text.endswith("/front-camera-0001.png")
    assert len(text) < 90 and "..." in text
