"""Robotics: from a camera's frame to its answer, the cost of the wires, and a recording against real time.

    python benchmarks/robotics.py out/nano [--frames 100] [--size 1280x720] [--json FILE]

frame_to_answer_ms and p99_ms: `qwenvl watch` on FFmpeg's test picture at ten frames a second, from the frame's arrival
to the end of its answer, of which dropped frames came in between and stale ones were too old. dds_round_trip_ms and
zenoh_round_trip_ms: a raw picture to another process and a short text back, with encoding and decoding, median, on the
wires of ROS 2's nodes (rmw_cyclonedds, rmw_zenoh).
replay_times_realtime: seconds of a recording of compressed pictures, one question a second, per second of computing.
Needs the extras camera, dds, rmw-zenoh and replay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, conditions, finish, needed_bundle, percentiles
from mcap.writer import Writer

from qwenvl_edge import QwenVLEngine
from qwenvl_edge.machine.memory import keep_freed
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.replay.recordings import open_recording
from qwenvl_edge.robotics.replay.replaying import Replay, ReplaySettings
from qwenvl_edge.robotics.ros_messages import image_to_rgb
from qwenvl_edge.robotics.ros_types import deserialize, message_kinds, serialize, typestore
from qwenvl_edge.robotics.watch.cameras import Camera
from qwenvl_edge.robotics.watch.watching import Watch, WatchSettings
from qwenvl_edge.robotics.wires.dds_participant import Participant
from qwenvl_edge.robotics.wires.wire import RELIABLE, SENSOR, Wire
from qwenvl_edge.robotics.wires.zenoh_session import ZenohWire

PICTURE = Path(__file__).parent.parent / "models" / "nano" / "demo.png"
QUESTION = "Where is the red mug?"
RATE = 10
IMAGE, STRING, COMPRESSED = "sensor_msgs/msg/Image", "std_msgs/msg/String", "sensor_msgs/msg/CompressedImage"
DOMAIN = 77
LOOPBACK = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name='lo' multicast='false'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<Peers><Peer address='127.0.0.1'/></Peers></Discovery>"
    "<Internal><SocketReceiveBufferSize max='10MB'/></Internal></Domain></CycloneDDS>"
)
PORT = 17447
TRIES = 10  # while the two sides find each other


class Lines:
    """Keeps what a watch tells."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def send(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(json.loads(line))

    def close(self) -> None:
        """Nothing to end."""


def watch(engine: QwenVLEngine, frames: int, size: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Latencies of `frames` answers, and what the watch counted."""
    lines = Lines()
    camera = Camera(f"lavfi:testsrc=size={size}:rate={RATE}")
    settings = WatchSettings(QUESTION, every_s=0.0, count=frames + 1)
    counts = Watch(engine, camera, settings, [lines], Messages(print)).run()
    latencies = [line["latency_ms"] for line in lines.lines if "latency_ms" in line][1:]  # the first one warms up
    return percentiles(latencies), vars(counts)


def raw_image(size: str) -> Any:
    """A message of random pixels."""
    width, height = map(int, size.split("x"))
    message = message_kinds().Image()
    message.width, message.height, message.step, message.encoding = width, height, 3 * width, "rgb8"
    message.data = np.random.default_rng(0).integers(0, 256, 3 * width * height, np.uint8)
    return message


def seen(data: bytes) -> Any:
    """The text that answers a picture: its number."""
    image = deserialize(data, IMAGE)
    image_to_rgb(image)
    text = message_kinds().String()
    text.data = str(image.header.stamp.sec)
    return text


def answer(open_wire: Callable[[str], Wire]) -> None:
    """Answer pictures on a wire until the process is ended."""
    keep_freed()  # as nodes do
    wire = open_wire("listen")
    pictures = wire.reader("/picture", IMAGE, SENSOR)
    replies = wire.writer("/reply", STRING, RELIABLE)
    while True:
        wire.wait(1.0)
        for data in wire.take(pictures):
            wire.write(replies, seen(data))


def wire_round_trips(open_wire: Callable[[str], Wire], image: Any, count: int) -> list[float]:
    """Milliseconds of each round trip on a wire; a picture that best effort lost is sent again."""
    keep_freed()  # a camera's program has memory for its pictures
    peer = multiprocessing.get_context("spawn").Process(target=answer, args=[open_wire], daemon=True)
    peer.start()
    try:
        with contextlib.closing(open_wire("connect")) as wire:
            replies = wire.reader("/reply", STRING, RELIABLE)
            writer = wire.writer("/picture", IMAGE, SENSOR)

            def take() -> list[str]:
                wire.wait(0.01)
                return [deserialize(data, STRING).data for data in wire.take(replies)]

            return round_trips(image, count, lambda: wire.write(writer, image), take)
    finally:
        peer.kill()
        peer.join()


def open_dds(role: str) -> Wire:
    """A participant on this machine only."""
    os.environ["CYCLONEDDS_URI"] = LOOPBACK
    return Participant(DOMAIN, f"/benchmark_{role}")


def open_zenoh(role: str) -> Wire:
    """A session on this machine only, without a router."""
    ends = {"listen": {"endpoints": []}, "connect": {"endpoints": []}, role: {"endpoints": [f"tcp/127.0.0.1:{PORT}"]}}
    quiet = {"scouting": {"multicast": {"enabled": False}}, "timestamping": {"enabled": {"peer": True}}}
    with tempfile.NamedTemporaryFile("w", suffix=".json5") as file:
        json.dump({"mode": "peer", **ends, **quiet}, file)
        file.flush()
        return ZenohWire(DOMAIN, f"/benchmark_{role}", file.name)


def round_trips(image: Any, count: int, send: Callable[[], None], take: Callable[[], list[str]]) -> list[float]:
    """Send numbered pictures and wait for the reply about each; a tenth more at first warms up."""
    found: list[float] = []
    number = 0
    while len(found) < count + count // 10:
        number += 1
        if number > 3 * count + TRIES:
            raise SystemExit(f"of {number - 1} pictures {len(found)} were answered; see net.core.rmem_max.")
        image.header.stamp.sec = number
        begun = time.perf_counter()
        send()
        while time.perf_counter() - begun < 1.0:
            if str(number) in take():
                found.append((time.perf_counter() - begun) * 1e3)
                break
    return found[count // 10 :]


def record(path: Path, seconds: int) -> None:
    """A recording of the demo picture, RATE of it a second."""
    message = message_kinds().CompressedImage()
    message.format, message.data = "png", np.frombuffer(PICTURE.read_bytes(), np.uint8)
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2")
        definition = typestore().generate_msgdef(COMPRESSED, ros_version=2)[0].encode()
        channel = writer.register_channel("/camera", "cdr", writer.register_schema(COMPRESSED, "ros2msg", definition))
        for number in range(seconds * RATE):
            at = 10**18 + number * 10**9 // RATE
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(at, 10**9)
            writer.add_message(channel, log_time=at, publish_time=at, data=serialize(message))
        writer.finish()


def replay(engine: QwenVLEngine, seconds: int) -> float:
    """Seconds of a recording per second of computing, one question a second."""
    with tempfile.TemporaryDirectory() as folder:
        bag = Path(folder) / "bag.mcap"
        record(bag, seconds)
        recording = open_recording(bag)
        with contextlib.closing(recording):
            settings = ReplaySettings(QUESTION, Path(folder) / "answers.mcap", every_s=1.0)
            return Replay(engine, recording, settings).run(lambda entry, progress: None).times_realtime


def main(options: argparse.Namespace) -> None:
    """Measure, and print the figures."""
    before = conditions()
    needed_bundle(options.bundle)
    image = raw_image(options.size)
    dds = wire_round_trips(open_dds, image, options.frames)
    zenoh = wire_round_trips(open_zenoh, image, options.frames)
    engine = QwenVLEngine(options.bundle, threads=options.threads)
    latencies, counts = watch(engine, options.frames, options.size)
    headline = {
        "frame_to_answer_ms": latencies["p50"],
        "p99_ms": latencies["p99"],
        "dropped": counts["dropped"],
        "stale": counts["stale"],
        "dds_round_trip_ms": float(np.median(dds)),
        "zenoh_round_trip_ms": float(np.median(zenoh)),
        "replay_times_realtime": replay(engine, max(options.frames // 5, 5)),
    }
    wires = {"dds": percentiles(dds), "zenoh": percentiles(zenoh)}
    finish(options, before, headline, {"watch": {"latencies": latencies, **counts}, "round_trips_ms": wires})


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--frames", type=int, default=100, metavar="N", help="answers and round trips (100)")
    parser.add_argument(
        "--size", default="1280x720", metavar="WxH", help="of the pictures on the wires and of the watch"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    main(parser.parse_args())
