"""`qwenvl replay`: ask a question about the frames of a recording."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.cli.answer_options import add_answer_options, read_overrides
from qwenvl_edge.cli.durations import positive_seconds, seconds
from qwenvl_edge.machine.signals import terminable
from qwenvl_edge.machine.terminal import harmless, note, say

if TYPE_CHECKING:
    from qwenvl_edge.robotics.replay.journal import Entry
    from qwenvl_edge.robotics.replay.replaying import Progress

_REPORT_S = 5.0


def add_replay(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "replay", help="ask a question about the frames of a recording (MCAP, rosbag2); needs the extra replay"
    )
    parser.add_argument("recording", type=Path, metavar="BAG", help="an MCAP file, a rosbag2 folder, or a .bag")
    parser.add_argument("question", metavar="QUESTION", help="asked about every chosen frame")
    parser.add_argument("--bundle", type=Path, required=True, metavar="BUNDLE", help="the folder of `qwenvl export`")
    parser.add_argument("--topic", metavar="T", help="the pictures (default: the only topic that has some)")
    parser.add_argument(
        "--every",
        type=seconds,
        default=0.0,
        metavar="SPAN",
        help="ask about one frame in so much time: 1s, 500ms (default: about all)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the MCAP file of the answers")
    parser.add_argument("--overwrite", action="store_true", help="replace it if it is there")
    parser.add_argument("--with-frames", action="store_true", help="copy the frames that were asked about into it")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the answers as CSV too (default: no)")
    parser.add_argument(
        "--rerun",
        metavar="WHERE",
        help="write frames and answers to FILE.rrd, or to a viewer: rerun+http://HOST:9876/proxy (default: no)",
    )
    parser.add_argument(
        "--clip",
        type=positive_seconds,
        default=0.0,
        metavar="SPAN",
        help="show so much time before each frame as a clip (newer families; default: the frame alone)",
    )
    parser.add_argument(
        "--clip-fps", type=float, default=2.0, metavar="N", help="frames a second of a clip (default 2)"
    )
    add_answer_options(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    parser.set_defaults(run=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.engine import QwenVLEngine
    from qwenvl_edge.robotics.replay.frames import choose_topic
    from qwenvl_edge.robotics.replay.recordings import open_recording
    from qwenvl_edge.robotics.replay.replaying import Replay, ReplaySettings, digest_of

    settings = ReplaySettings(
        question=arguments.question,
        out=arguments.out,
        topic=arguments.topic,
        every_s=arguments.every,
        clip_s=arguments.clip,
        clip_fps=arguments.clip_fps,
        csv=arguments.csv,
        rerun=arguments.rerun,
        with_frames=arguments.with_frames,
        overwrite=arguments.overwrite,
        overrides=read_overrides(arguments),
    )
    recording = open_recording(arguments.recording)
    with contextlib.closing(recording), terminable():
        if recording.note:
            note(f"qwenvl: {recording.path}: {recording.note}", to=sys.stderr)
        choose_topic(recording, settings.topic)  # before the bundle is loaded
        engine = QwenVLEngine(arguments.bundle, threads=arguments.threads)
        replay = Replay(engine, recording, settings, digest_of(arguments.bundle))
        if replay.resumed:
            note(f"qwenvl: going on after {replay.resumed} answers of an interrupted run", to=sys.stderr)
        printer = _Printer(replay.start_ns)
        printer.report(replay.run(printer.take))
    return 0


class _Printer:
    """Prints a row for each answer on stdout, and now and then on stderr how far the replay is."""

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._said = time.monotonic()

    def take(self, entry: Entry, progress: Progress) -> None:
        """Print an answer."""
        from qwenvl_edge.robotics.replay.tables import row

        say(harmless(row(entry, self._start_ns), sys.stdout))
        if time.monotonic() - self._said >= _REPORT_S:
            self.report(progress)

    def report(self, progress: Progress) -> None:
        """Say how far the replay is."""
        self._said = time.monotonic()
        note(
            f"qwenvl: {progress.asked} frames; {progress.recorded_s:.1f} of {progress.total_s:.1f} s of the recording "
            f"in {progress.computing_s:.1f} s: {progress.times_realtime:.2f} times real time",
            to=sys.stderr,
        )
