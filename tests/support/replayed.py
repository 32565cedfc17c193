"""A recording replayed with scripted answers, and what another library reads of the output."""

from qwenvl_edge.robotics.replay.recordings import open_recording
from qwenvl_edge.robotics.replay.replaying import Replay, ReplaySettings
from support.scripted import engine as scripted

TOPIC = "/camera/image_raw"
BOXED = "<ref>dots</ref><box>(0,0),(500,500)</box> are here<|im_end|>"


def replay(folder, bag, *answers, entries=None, stop_after=None, **settings):
    """Replay a bag with scripted answers; returns the settings. stop_after: interrupt after so many answers."""
    seen = [] if entries is None else entries
    (folder / "model").mkdir(exist_ok=True)
    recording = open_recording(bag)
    chosen = ReplaySettings(question="Where?", **{"out": folder / "answers.mcap", **settings})

    def take(entry, progress):
        seen.append(entry)
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt

    try:
        Replay(scripted(folder / "model", *answers)[0], recording, chosen).run(take)
    finally:
        recording.close()
    return chosen


def read_back(path):
    """The answers as mcap-ros2-support reads them: topic -> [(log time, message)]."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    found = {}
    with path.open("rb") as file:
        for each in make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages():
            found.setdefault(each.channel.topic, []).append((each.message.log_time, each.decoded_message))
    return found
