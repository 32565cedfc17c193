"""Recordings of robots: MCAP files, rosbag2 folders (sqlite3 or MCAP) and ROS 1 bags, by the packages mcap and rosbags.

A recording gives the messages of a topic as bytes, each with the form that says how to decode them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qwenvl_edge.errors import QwenVLError
from qwenvl_edge.machine.urls import show

_SUFFIXES = (".mcap", ".db3", ".bag")
_REASON = 200  # characters of a library's message


class RecordingError(QwenVLError):
    """A recording cannot be read, or lacks the topic."""


@dataclass(frozen=True)
class Form:
    """Form in which a topic's messages are written.

    kind: the message type, such as sensor_msgs/msg/Image. encoding: cdr, ros1, protobuf or json.
    definition: the type's definition as the recording has it, b"" if it has none. language: that of the definition
    (ros2msg, ros2idl, ros1msg, protobuf, jsonschema).
    """

    kind: str
    encoding: str
    language: str = ""
    definition: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Message:
    """A recorded message; times in nanoseconds: when it was logged, and when it was sent."""

    form: Form
    log_ns: int
    sent_ns: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Topic:
    """A topic of a recording: its name, the types of its messages, and how many there are."""

    name: str
    kinds: tuple[str, ...]
    count: int


class Recording(Protocol):
    """An open recording: its path, topics and first and last time. note: what is odd about it, else ""."""

    path: Path
    topics: dict[str, Topic]
    start_ns: int
    end_ns: int
    note: str

    def messages(self, topic: str) -> Iterator[Message]:
        """Yield a topic's messages in the order of their log times. Raises RecordingError."""

    def close(self) -> None:
        """Close its files."""


def open_recording(path: Path) -> Recording:
    """Open an MCAP file, a rosbag2 folder, one of its .db3 files, or a ROS 1 bag.

    Raises:
        RecordingError: there is none, or it cannot be read.
        QwenVLError: the packages that read it are not installed.
    """
    if not path.exists():
        raise RecordingError(f"there is no recording at {show(str(path))}; give an MCAP file or a rosbag2 folder.")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        path = _only_file(path)
    _check_installed()
    with _reading(path):
        return McapRecording(path) if path.suffix == ".mcap" else RosbagRecording(path)


def _only_file(folder: Path) -> Path:
    """The recording in a folder whose metadata.yaml was never written, as after a crash."""
    files = sorted(each for each in folder.iterdir() if each.suffix in _SUFFIXES)
    if not files:
        raise RecordingError(
            f"{show(str(folder))} is no recording: it has no metadata.yaml and no .mcap or .db3 file; give another one."
        )
    if len(files) > 1:
        raise RecordingError(
            f"{show(str(folder))} has {len(files)} recordings but no metadata.yaml; give one of the files, or run: "
            f"ros2 bag reindex {folder}"
        )
    return files[0]


def _check_installed() -> None:
    try:
        import mcap  # noqa: F401
        import mcap_protobuf  # noqa: F401
        import rosbags.rosbag2  # noqa: F401
    except ImportError as error:
        raise QwenVLError(
            f"recordings need {error.name}, which is not installed; run: pip install 'qwenvl-edge[replay]'"
        ) from None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise what a library says about the file as one sentence."""
    try:
        yield
    except QwenVLError:
        raise
    except Exception as error:  # a damaged file makes the readers raise whatever there is
        reason = " ".join(str(error).split())[:_REASON].rstrip(".") or type(error).__name__
        raise RecordingError(
            f"{show(str(path))} cannot be read as a recording: {reason}; "
            "look at it with `mcap doctor` or `ros2 bag info`."
        ) from error


class McapRecording:
    """An MCAP file. One whose end was never written is read from its beginning, as far as it is whole."""

    def __init__(self, path: Path) -> None:
        from mcap.exceptions import EndOfFile, McapError
        from mcap.reader import make_reader

        self.path = path
        self.note = ""
        self._file = path.open("rb")
        try:
            self._reader: Any = make_reader(self._file)
            try:
                summary = self._reader.get_summary()
            except (EndOfFile, McapError, ValueError, OSError):
                self.note = "its end is missing, as after a crash; it is read as far as it is whole"
                summary = None
            indexed = summary is not None and summary.statistics is not None and summary.chunk_indexes
            self._indexed = bool(indexed)
            self._forms: dict[int, Form] = {}
            if indexed:
                self._take_summary(summary)
            else:
                self._scan()
        except BaseException:
            self._file.close()
            raise

    def _take_summary(self, summary: Any) -> None:
        statistics = summary.statistics
        counts = statistics.channel_message_counts
        found = [
            (channel.topic, _kind(summary.schemas.get(channel.schema_id)), counts.get(number, 0))
            for number, channel in summary.channels.items()
        ]
        self.topics = _topics(found)
        self.start_ns, self.end_ns = statistics.message_start_time, statistics.message_end_time

    def _scan(self) -> None:
        """Read all of a file without an index for its topics and times."""
        found, times = [], []
        for schema, channel, message in self._stream():
            found.append((channel.topic, _kind(schema), 1))
            times.append(message.log_time)
        self.topics = _topics(found)
        self.start_ns, self.end_ns = min(times, default=0), max(times, default=0)

    def _stream(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (schema, channel, message) in the order of the file, until its end or the first damage."""
        from mcap.reader import NonSeekingReader

        self._file.seek(0)
        messages = NonSeekingReader(self._file).iter_messages(log_time_order=False)
        while True:
            try:
                yield next(messages)
            except StopIteration:
                return
            except Exception:  # cut within a record: what is read by then counts
                if not self.note:
                    raise
                return

    def messages(self, topic: str) -> Iterator[Message]:
        """See Recording."""
        with _reading(self.path):
            found = self._reader.iter_messages(topics=[topic]) if self._indexed else self._stream()
            for schema, channel, message in found:
                if channel.topic == topic:
                    form = self._form(schema, channel)
                    yield Message(form, message.log_time, message.publish_time, bytes(message.data))

    def _form(self, schema: Any, channel: Any) -> Form:
        if channel.id not in self._forms:
            language, definition = ("", b"") if schema is None else (schema.encoding, bytes(schema.data))
            self._forms[channel.id] = Form(_kind(schema), channel.message_encoding, language, definition)
        return self._forms[channel.id]

    def close(self) -> None:
        """See Recording."""
        self._file.close()


class RosbagRecording:
    """A rosbag2 folder, one of its .db3 files, or a ROS 1 bag, by rosbags."""

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag1 import Reader as Reader1
        from rosbags.rosbag2 import Reader as Reader2

        self.path = path
        self.note = ""
        self._encoding = "ros1" if path.suffix == ".bag" else "cdr"
        self._reader: Any = Reader1(path) if self._encoding == "ros1" else Reader2(path)
        self._reader.open()
        found = [(each.topic, each.msgtype, each.msgcount) for each in self._reader.connections]
        self.topics = _topics(found)
        empty = not self._reader.message_count
        self.start_ns = 0 if empty else self._reader.start_time
        self.end_ns = 0 if empty else self._reader.end_time

    def messages(self, topic: str) -> Iterator[Message]:
        """See Recording."""
        with _reading(self.path):
            for read, connections in self._parts():
                chosen = [each for each in connections if each.topic == topic]
                forms = {each.id: self._form(each) for each in chosen}
                for connection, log_ns, data in read(chosen) if chosen else ():
                    yield Message(forms[connection.id], log_ns, log_ns, bytes(data))

    def _parts(self) -> list[tuple[Callable[[Any], Any], Any]]:
        """Return what reads each file of the recording, with the file's connections.

        rosbags' reader of folders passes over a topic whose QoS stands differently in metadata.yaml and in the file, as
        rosbag2 itself wrote them for years; so the files are read one by one, but for messages that it decompresses.
        """
        inner = getattr(self._reader, "storage", None)
        storages = getattr(inner, "storages", None)
        if not storages or self._reader.compression_mode == "message":
            return [(lambda chosen: self._reader.messages(connections=chosen), self._reader.connections)]
        return [(storage.messages, storage.connections) for storage in storages]

    def _form(self, connection: Any) -> Form:
        language = connection.msgdef.format.name  # NONE, MSG or IDL
        version = "ros1" if self._encoding == "ros1" else "ros2"
        languages = {"MSG": f"{version}msg", "IDL": "ros2idl"}
        return Form(connection.msgtype, self._encoding, languages.get(language, ""), connection.msgdef.data.encode())

    def close(self) -> None:
        """See Recording."""
        self._reader.close()


def _kind(schema: Any) -> str:
    return "" if schema is None else str(schema.name)


def _topics(found: list[tuple[str, str, int]]) -> dict[str, Topic]:
    """Topics of (name, type, count) of their parts, sorted by name."""
    topics: dict[str, Topic] = {}
    for name, kind, count in sorted(found):
        before = topics.get(name, Topic(name, (), 0))
        kinds = before.kinds if kind in before.kinds else (*before.kinds, kind)
        topics[name] = Topic(name, kinds, before.count + count)
    return topics
