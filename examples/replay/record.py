"""Makes a recording of picture files, one every half second: python record.py OUT.mcap PICTURE [PICTURE ...].

It stands for a robot's own: `ros2 bag record -s mcap /camera/image_raw/compressed` writes the same messages.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from mcap.writer import Writer

from qwenvl_edge import QwenVLError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.robotics.ros_types import message_kinds, serialize, typestore

KIND = "sensor_msgs/msg/CompressedImage"
START_S = 1_700_000_000
STEP_NS = 500_000_000


def recording(pictures: list[Path]) -> bytes:
    """An MCAP file with the pictures."""
    kinds, file = message_kinds(), io.BytesIO()
    writer = Writer(file)
    writer.start(profile="ros2")
    definition = typestore().generate_msgdef(KIND, ros_version=2)[0].encode()
    schema = writer.register_schema(KIND, "ros2msg", definition)
    channel = writer.register_channel("/camera/image_raw/compressed", "cdr", schema)
    for number, picture in enumerate(pictures):
        load_picture(picture)  # raises if it is none
        log_ns = START_S * 10**9 + number * STEP_NS
        message = kinds.CompressedImage()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(log_ns, 10**9)
        message.header.frame_id = "camera_optical_frame"
        message.format = picture.suffix.lstrip(".")
        message.data = np.frombuffer(picture.read_bytes(), np.uint8)
        writer.add_message(channel, log_time=log_ns, publish_time=log_ns, data=serialize(message))
    writer.finish()
    return file.getvalue()


def main() -> None:
    """Write the recording once it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path, nargs="+")
    given = parser.parse_args()
    try:
        data = recording(given.picture)
        given.out.write_bytes(data)
    except QwenVLError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f'"{given.out}" cannot be written: {error.strerror}.')


if __name__ == "__main__":
    main()
