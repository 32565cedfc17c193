"""`qwenvl watch`: ask a question about a camera's newest frame, again and again."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_edge.cli.answer_options import add_answer_options, read_overrides
from qwenvl_edge.cli.durations import positive_seconds, seconds
from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.signals import Terminated, terminable
from qwenvl_edge.machine.terminal import note

if TYPE_CHECKING:
    from qwenvl_edge.robotics.watch.sinks import Sink


def add_watch(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "watch", help="ask a question about a camera's newest frame, again and again; needs the extra camera"
    )
    parser.add_argument(
        "camera",
        metavar="CAMERA",
        help="/dev/video0, rtsp://HOST/PATH or another URL, a video file, lavfi:GRAPH, or gst:PIPELINE",
    )
    parser.add_argument("question", metavar="QUESTION", help="asked about the newest frame")
    parser.add_argument("--bundle", type=Path, required=True, metavar="BUNDLE", help="the folder of `qwenvl export`")
    parser.add_argument(
        "--every",
        type=seconds,
        default=0.5,
        metavar="SPAN",
        help="time between two questions at least; 0: no pause (default 500ms)",
    )
    parser.add_argument("--on-change", action="store_true", help="print an answer only if it is another than before")
    parser.add_argument(
        "--hold",
        type=int,
        default=1,
        metavar="N",
        help="with --on-change: so many answers in a row must agree (default 1)",
    )
    parser.add_argument(
        "--max-age", type=positive_seconds, default=2.0, metavar="SPAN", help="ask about no older frame (default 2s)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after N answers (default: at Ctrl-C)")
    parser.add_argument(
        "--camera-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="FFmpeg's, such as video_size=1280x720 or pixel_format=nv12; repeatable (default: none)",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="append the lines to a file (default: print them)")
    parser.add_argument(
        "--mqtt", metavar="URL", help="publish them too: mqtt://HOST/TOPIC (needs the extra mqtt; default: no)"
    )
    parser.add_argument(
        "--mqtt-password-file", type=Path, metavar="FILE", help="the password of the URL's user (default: none)"
    )
    add_answer_options(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")
    parser.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> int:
    from qwenvl_edge.engine import QwenVLEngine
    from qwenvl_edge.robotics.messages import Messages
    from qwenvl_edge.robotics.watch.cameras import Camera
    from qwenvl_edge.robotics.watch.watching import Watch, WatchSettings

    options = read_overrides(arguments)
    settings = WatchSettings(
        question=arguments.question,
        every_s=arguments.every,
        on_change=arguments.on_change,
        hold=arguments.hold,
        max_age_ms=arguments.max_age * 1e3,
        deadline_ms=options.pop("deadline_ms", None),
        count=arguments.count,
        options=options,
    )
    camera = Camera(arguments.camera, _camera_options(arguments.camera_option))
    camera.check()
    messages = Messages(lambda line: note(f"qwenvl: {line}", to=sys.stderr))
    engine = QwenVLEngine(arguments.bundle, threads=arguments.threads)
    with contextlib.ExitStack() as opened:
        sinks = _sinks(arguments, messages.log)
        for sink in sinks:
            opened.callback(sink.close)
        watch = Watch(engine, camera, settings, sinks, messages)
        try:
            with terminable():
                counts = watch.run()
        except Terminated:  # a service is asked to end so
            counts = watch.counts
    note(
        f"qwenvl: {counts.answered} answers, {counts.told} lines; {counts.dropped} frames dropped for newer ones, "
        f"{counts.stale} too old, {counts.failed} errors",
        to=sys.stderr,
    )
    return 0


def _sinks(arguments: argparse.Namespace, tell: Any) -> list[Sink]:
    from qwenvl_edge.robotics.watch.sinks import LineFile, Mqtt, Output

    sinks: list[Sink] = [Output() if arguments.log is None else LineFile(arguments.log)]
    if arguments.mqtt is not None:
        sinks.append(Mqtt(arguments.mqtt, tell, password_file=arguments.mqtt_password_file))
    return sinks


def _camera_options(given: list[str]) -> dict[str, str]:
    options = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise QwenVLError(f"--camera-option is {each!r}; write NAME=VALUE, such as video_size=1280x720.")
        options[name] = value
    return options
