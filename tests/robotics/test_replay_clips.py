"""`qwenvl replay`, interrupted and gone on with, and about clips."""

import pytest

from qwenvl_edge import QwenVLError
from support.recordings import write_mcap_ros2

pytest.importorskip("mcap_ros2", reason="the extra replay is not installed")
pytest.importorskip("rosbags", reason="the extra replay is not installed")

from qwenvl_edge.robotics.replay.recordings import open_recording
from qwenvl_edge.robotics.replay.replaying import Replay, ReplaySettings
from support.replayed import read_back, replay


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_an_interrupted_replay_goes_on_and_gives_the_same_bytes(tmp_path, stop_after):
    bag = write_mcap_ros2(tmp_path / "bag.mcap")
    answers = [f"answer {number}<|im_end|>" for number in range(6)]
    once, twice = tmp_path / "once.mcap", tmp_path / "twice.mcap"
    replay(tmp_path, bag, *answers, out=once)
    with pytest.raises(KeyboardInterrupt):
        replay(tmp_path, bag, *answers, out=twice, stop_after=stop_after)
    assert not twice.exists()
    with (tmp_path / "twice.mcap.journal").open("a") as journal:
        journal.write('{"log_ns": 17')  # cut in the middle of a line
    entries = []
    replay(tmp_path, bag, *answers[stop_after:], out=twice, entries=entries)
    assert [entry.text for entry in entries] == [f"answer {number}" for number in range(6)]
    assert once.read_bytes() == twice.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bag.mcap", "model", "once.mcap", "twice.mcap"]


def test_clips_are_refused_by_a_family_without(tmp_path):
    bag = write_mcap_ros2(tmp_path / "bag.mcap")
    with pytest.raises(QwenVLError, match="clip"):
        replay(tmp_path, bag, "red<|im_end|>", clip_s=1.0)


class Watched:
    """An engine that notes the times of the clips that it is shown."""

    can_chat = True

    def __init__(self, engine):
        self._engine, self.times = engine, []

    def chat(self, question, *, video, **options):
        self.times.append(list(video.seconds))
        return self._engine.chat(question, video=video, **options)


@pytest.mark.parametrize("resumed", [False, True])
def test_clips_hold_the_last_seconds(tmp_path, resumed):
    """Two frames a second of the last second, and the frame itself; the same after an interruption."""
    from support.families import scripted_engine

    bag = write_mcap_ros2(tmp_path / "bag.mcap", 8)
    settings = ReplaySettings(question="What?", out=tmp_path / "out.mcap", every_s=1.0, clip_s=1.0, clip_fps=2.0)

    def run(answers, on_entry=lambda entry, progress: None):
        engine = Watched(scripted_engine(tmp_path, "qwen2_vl", *answers)[0])
        recording = open_recording(bag)
        try:
            Replay(engine, recording, settings).run(on_entry)
        finally:
            recording.close()
        return engine.times

    def interrupt(entry, progress):
        raise KeyboardInterrupt

    if resumed:
        with pytest.raises(KeyboardInterrupt):
            run(["one<|im_end|>"], interrupt)
        assert run(["two<|im_end|>"]) == [[0.0, 0.5, 1.0]]
    else:
        assert run(["one<|im_end|>", "two<|im_end|>"]) == [[0.0], [0.0, 0.5, 1.0]]
    assert [message.data for _, message in read_back(tmp_path / "out.mcap")["/qwenvl/response"]] == ["one", "two"]
