"""Recordings as robots make them, written by libraries that the project does not write with."""

import base64
import io
import json

import numpy as np
from PIL import Image

NS = 10**9
START_S = 1_700_000_000
SIZE = (12, 8)  # width and height of a frame
STEP_NS = 250_000_000  # four frames a second


def shades(count):
    """Frames whose red says which one each is: [H, W, 3]."""
    return [np.full((SIZE[1], SIZE[0], 3), (10 * number, 40, 90), np.uint8) for number in range(count)]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def stamps(count):
    """Log times in ns, and the stamps of the headers: a moment earlier, as a driver has them."""
    logged = [START_S * NS + number * STEP_NS for number in range(count)]
    return [(at, divmod(at - 7_000_000, NS)) for at in logged]


def _ros_message(types, kind, pixels, stamp):
    header = types["std_msgs/msg/Header"](
        stamp=types["builtin_interfaces/msg/Time"](sec=stamp[0], nanosec=stamp[1]), frame_id="camera_optical"
    )
    if kind.endswith("CompressedImage"):
        return types[kind](header=header, format="png", data=np.frombuffer(png(pixels), np.uint8))
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels[..., ::-1]).reshape(-1)
    layout = {"encoding": "bgr8", "is_bigendian": 0, "step": 3 * width}
    return types[kind](header=header, height=height, width=width, data=data, **layout)


def write_rosbag(path, count=6, *, kind="sensor_msgs/msg/Image", storage="SQLITE3", topic="/camera/image_raw"):
    """A rosbag2 folder by rosbags, with a topic without pictures beside the camera's."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage]) as writer:
        camera = writer.add_connection(topic, kind, typestore=store)
        other = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
        for pixels, (at, stamp) in zip(shades(count), stamps(count), strict=True):
            message = _ros_message(store.types, kind, pixels, stamp)
            writer.write(camera, at, store.serialize_cdr(message, kind))
            words = store.types["std_msgs/msg/String"](data="hello")
            writer.write(other, at + 1, store.serialize_cdr(words, "std_msgs/msg/String"))
    return path


def write_ros1(path, count=6):
    """A ROS 1 bag by rosbags."""
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    kind = "sensor_msgs/msg/CompressedImage"
    with Writer(path) as writer:
        camera = writer.add_connection("/camera/image_raw", kind, typestore=store)
        for pixels, (at, stamp) in zip(shades(count), stamps(count), strict=True):
            header = store.types["std_msgs/msg/Header"](
                seq=0, stamp=store.types["builtin_interfaces/msg/Time"](*stamp), frame_id="camera_optical"
            )
            message = store.types[kind](header=header, format="png", data=np.frombuffer(png(pixels), np.uint8))
            writer.write(camera, at, store.serialize_ros1(message, kind))
    return path


def write_mcap_ros2(path, count=6, *, finish=True):
    """An MCAP file by mcap-ros2-support; without `finish` as a crash leaves it."""
    from mcap_ros2.writer import Writer
    from rosbags.typesys import Stores, get_typestore

    text = get_typestore(Stores.ROS2_JAZZY).generate_msgdef("sensor_msgs/msg/Image", ros_version=2)[0]
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=1)
        schema = writer.register_msgdef("sensor_msgs/msg/Image", text)
        for pixels, (at, (seconds, rest)) in zip(shades(count), stamps(count), strict=True):
            header = {"stamp": {"sec": seconds, "nanosec": rest}, "frame_id": "camera_optical"}
            message = {"header": header, "height": SIZE[1], "width": SIZE[0], "encoding": "rgb8", "is_bigendian": 0}
            message |= {"step": 3 * SIZE[0], "data": pixels.tobytes()}
            writer.write_message("/camera/image_raw", schema, message, log_time=at, publish_time=at)
        if finish:
            writer.finish()
    return path


def write_foxglove(path, count=6, *, raw=False, pictures=None):
    """An MCAP file by Foxglove's own SDK, which writes protobuf."""
    import foxglove
    from foxglove import Context
    from foxglove.channels import CompressedImageChannel, RawImageChannel
    from foxglove.messages import CompressedImage, RawImage, Timestamp

    pictures = shades(count) if pictures is None else pictures
    context = Context()
    with foxglove.open_mcap(path, context=context):
        channel = (RawImageChannel if raw else CompressedImageChannel)("/camera/image_raw", context=context)
        for pixels, (at, (seconds, rest)) in zip(pictures, stamps(len(pictures)), strict=True):
            header = {"timestamp": Timestamp(seconds, rest), "frame_id": "camera_optical"}
            if raw:
                layout = {"width": SIZE[0], "height": SIZE[1], "encoding": "rgb8", "step": 3 * SIZE[0]}
                channel.log(RawImage(**header, **layout, data=pixels.tobytes()), log_time=at)
            else:
                channel.log(CompressedImage(**header, format="png", data=png(pixels)), log_time=at)
    return path


def write_json(path, count=6):
    """An MCAP file of Foxglove's JSON."""
    from mcap.writer import Writer

    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/camera/image_raw", "json", schema)
        for pixels, (at, (seconds, rest)) in zip(shades(count), stamps(count), strict=True):
            message = {"timestamp": {"sec": seconds, "nsec": rest}, "frame_id": "camera_optical", "format": "png"}
            message["data"] = base64.b64encode(png(pixels)).decode()
            writer.add_message(channel, log_time=at, publish_time=at, data=json.dumps(message).encode())
        writer.finish()
    return path


WRITERS = {
    "rosbag2 sqlite3, Image": lambda folder: write_rosbag(folder / "bag"),
    "rosbag2 sqlite3, CompressedImage": lambda folder: write_rosbag(
        folder / "bag", kind="sensor_msgs/msg/CompressedImage"
    ),
    "a .db3 alone": lambda folder: next(write_rosbag(folder / "bag").glob("*.db3")),
    "rosbag2 mcap": lambda folder: write_rosbag(folder / "bag", storage="MCAP"),
    "its .mcap alone": lambda folder: next(write_rosbag(folder / "bag", storage="MCAP").glob("*.mcap")),
    "mcap-ros2": lambda folder: write_mcap_ros2(folder / "bag.mcap"),
    "mcap without an end": lambda folder: write_mcap_ros2(folder / "bag.mcap", finish=False),
    "foxglove, CompressedImage": lambda folder: write_foxglove(folder / "bag.mcap"),
    "foxglove, RawImage": lambda folder: write_foxglove(folder / "bag.mcap", raw=True),
    "foxglove, JSON": lambda folder: write_json(folder / "bag.mcap"),
    "ROS 1": lambda folder: write_ros1(folder / "bag.bag"),
}
