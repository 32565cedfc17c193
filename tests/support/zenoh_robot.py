"""A robot's nodes among those of rmw_zenoh, as a program of its own: it knows nothing of this project.

Keys, tokens and attachments are written out here as rmw_zenoh's design document has them; CDR is by rosbags.

python zenoh_robot.py CONFIG camera TOPIC WIDTH HEIGHT SHADE   publishes pictures, twenty a second, until it is ended
python zenoh_robot.py CONFIG ask TOPIC WORDS                   publishes a question until it is ended
python zenoh_robot.py CONFIG echo TOPIC TYPE                   prints messages as JSON: String or Detection2DArray
python zenoh_robot.py CONFIG set NODE NAME VALUE               sets a parameter of a string or a number
python zenoh_robot.py CONFIG graph                             prints the tokens of the graph as they come and go
python zenoh_robot.py CONFIG router                            lets the others find each other, until it is ended
"""

import json
import struct
import sys
import threading
import time

import numpy as np
import zenoh
import zenoh.ext
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

HASHES = {
    "sensor_msgs/msg/Image": "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
    "std_msgs/msg/String": "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18",
    "vision_msgs/msg/Detection2DArray": "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "rcl_interfaces/srv/SetParameters": "56eed9a67e169f9cb6c1f987bc88f868c14a8fc9f743a263bc734c154015d7e0",
}
STORE = get_typestore(Stores.ROS2_JAZZY)
GID = bytes(range(16))
DETECTIONS = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score",
    "vision_msgs/msg/ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\n"
    "geometry_msgs/PoseWithCovariance pose",
    "vision_msgs/msg/Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id",
    "vision_msgs/msg/Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
    "rcl_interfaces/msg/SetRequest": "rcl_interfaces/Parameter[] parameters",
    "rcl_interfaces/msg/SetResponse": "rcl_interfaces/SetParametersResult[] results",
}
for name, text in DETECTIONS.items():
    STORE.register(get_types_from_msg(text, name))


def key(topic, kind):
    package, group, name = kind.split("/")
    return f"7/{topic}/{package}::{group}::dds_::{name}_/RIHS01_{HASHES[kind]}"


def attach(number):
    return struct.pack("<qq", number, time.time_ns()) + b"\x10" + GID


def publish(session, topic, kind, make, pause_s):
    """Publish messages, numbered from 1, until the program is ended."""
    publisher = session.declare_publisher(key(topic, kind))
    number = 0
    while True:
        number += 1
        publisher.put(bytes(STORE.serialize_cdr(make(), kind)), attachment=attach(number))
        time.sleep(pause_s)


def camera(session, topic, width, height, shade):
    """Publish pictures whose blue channel is the shade, with stamps of now."""
    width, height = int(width), int(height)
    pixels = np.tile(np.array([int(shade), 0, 0], np.uint8), width * height)
    types = STORE.types

    def make():
        stamp = types["builtin_interfaces/msg/Time"](*divmod(time.time_ns(), 10**9))
        header = types["std_msgs/msg/Header"](stamp, f"{topic}_frame")
        return types["sensor_msgs/msg/Image"](header, height, width, "bgr8", 0, 3 * width, pixels)

    publish(session, topic, "sensor_msgs/msg/Image", make, 0.05)


def ask(session, topic, words):
    """Publish a question, again and again."""
    publish(session, topic, "std_msgs/msg/String", lambda: STORE.types["std_msgs/msg/String"](words), 0.2)


def echo(session, topic, kind):
    """Print what comes and what came with it, like a subscription that is transient local."""
    kind = {"String": "std_msgs/msg/String", "Detection2DArray": "vision_msgs/msg/Detection2DArray"}[kind]

    def show(sample):
        number, at, size, gid = struct.unpack("<qqB16s", sample.attachment.to_bytes())
        message = STORE.deserialize_cdr(sample.payload.to_bytes(), kind)
        told = {"number": number, "age_s": (time.time_ns() - at) / 1e9, "gid": gid.hex(), "size": size}
        told["message"] = plain(message)
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()

    history = zenoh.ext.HistoryConfig(detect_late_publishers=True, max_samples=10)
    recovery = zenoh.ext.RecoveryConfig(heartbeat=True)
    subscriber = zenoh.ext.declare_advanced_subscriber(
        session, key(topic, kind), show, history=history, recovery=recovery, subscriber_detection=True
    )
    threading.Event().wait()
    subscriber.undeclare()


def plain(value):
    """A message as JSON has it."""
    if hasattr(value, "__msgtype__"):
        fields = [name for name, _ in STORE.fielddefs[value.__msgtype__][1]]
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def set_(session, node, name, value):
    """Set a parameter; `value` is JSON. Prints the response and the attachment's number and client."""
    value, types = json.loads(value), STORE.types
    none = np.zeros(0, np.uint8)
    words, real = (value if isinstance(value, kind) else kind() for kind in (str, float))
    message = types["rcl_interfaces/msg/ParameterValue"](
        4 if words else 3, False, 0, real, words, none, np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0), []
    )
    request = types["rcl_interfaces/msg/SetRequest"]([types["rcl_interfaces/msg/Parameter"](name, message)])
    data = bytes(STORE.serialize_cdr(request, "rcl_interfaces/msg/SetRequest"))
    service = key(f"{node}/set_parameters", "rcl_interfaces/srv/SetParameters")
    while True:
        # As rmw_zenoh's clients ask.
        for reply in session.get(
            service,
            target=zenoh.QueryTarget.ALL_COMPLETE,
            consolidation=zenoh.ConsolidationMode.NONE,
            payload=data,
            attachment=attach(11),
        ):
            number, _, _, client = struct.unpack("<qqB16s", reply.ok.attachment.to_bytes())
            told = plain(STORE.deserialize_cdr(reply.ok.payload.to_bytes(), "rcl_interfaces/msg/SetResponse"))
            sys.stdout.write(f"{json.dumps({**told, 'number': number, 'client': client == GID})}\n")
            return
        time.sleep(0.05)


def graph(session):
    """Print + and each token that appears, - and each that ends."""

    def show(sample):
        sign = "+" if sample.kind == zenoh.SampleKind.PUT else "-"
        sys.stdout.write(f"{sign} {sample.key_expr}\n")
        sys.stdout.flush()

    subscriber = session.liveliness().declare_subscriber("@ros2_lv/7/**", show, history=True)
    threading.Event().wait()
    subscriber.undeclare()


def router(session):
    """Be there."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    config, what, *rest = sys.argv[1:]
    commands = {"camera": camera, "ask": ask, "echo": echo, "set": set_, "graph": graph, "router": router}
    with zenoh.open(zenoh.Config.from_file(config)) as opened:
        commands[what](opened, *rest)
