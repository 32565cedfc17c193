"""The progress bar of a terminal."""

import io
import types

from qwenvl_edge.machine.terminal import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_overwrites_itself():
    stream = Terminal()
    with ProgressBar(stream) as bar:
        bar(0, 0, "a long beginning")
        bar(5, 10, "half")
        bar(5, 10, "half")
        bar(10, 10, "all")
    lines = stream.getvalue().split("\r")
    assert len(lines) == 4 and lines[2].startswith("[" + "#" * 15 + "." * 15 + "]  50% half")
    assert lines[3].endswith("\n") and len(lines[2]) >= len(lines[1])


def test_the_progress_bar_says_how_much_time_is_left(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr("qwenvl_edge.machine.terminal.time.monotonic", lambda: clock.now)
    stream = Terminal()

    def told(done, total, what, seconds):
        clock.now += seconds
        stream.seek(0)
        stream.truncate()
        bar(done, total, what)
        return stream.getvalue().strip().split("% ")[1]

    with ProgressBar(stream) as bar:
        assert told(2, 10, "a", 50) == "a"  # what was done before is not in this time
        assert told(4, 10, "b", 20) == "b, 1 min left"
        assert told(8, 10, "b", 40) == "b, 20 s left"
        assert told(10, 10, "b", 10) == "b"
        assert told(1, 3, "c", 10) == "c"
        assert told(2, 3, "c, 7 min left", 60) == "c, 7 min left"
        assert told(2, 3, "w" * 99, 60).endswith("w, 2 min left")
        assert len(stream.getvalue().strip("\r")) <= 79
