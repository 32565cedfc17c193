"""A camera for trials: sends a picture file at every tick, in the form of opencv-video-capture.

With a QUESTION it asks that once, on the output `text`. It ends when anything arrives on the input `done`.
"""

import argparse
import sys

import numpy as np
import pyarrow as pa
from dora import Node
from PIL import Image


def main() -> None:
    """Send PICTURE until `done`; ask QUESTION after the first frame."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture")
    parser.add_argument("question", nargs="*")
    given = parser.parse_args()
    try:
        bgr = np.asarray(Image.open(given.picture).convert("RGB"))[:, :, ::-1]
    except OSError as error:
        sys.exit(f'"{given.picture}" cannot be read as a picture: {error.strerror or error}.')
    metadata = {"encoding": "bgr8", "width": bgr.shape[1], "height": bgr.shape[0], "primitive": "image"}
    node, question = Node(), given.question
    for event in node:
        if event["type"] == "INPUT" and event["id"] == "done":
            break
        if event["type"] == "INPUT":
            node.send_output("image", pa.array(bgr.ravel()), metadata)
            if question:
                node.send_output("text", pa.array(question), {"asked_by": "picture_camera"})
                question = []


if __name__ == "__main__":
    main()
