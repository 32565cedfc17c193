"""Ask the model of examples/triton/models over gRPC; the answer streams, the last line is its JSON.

pip install 'tritonclient[grpc]' pillow
python examples/triton/ask.py models/nano/demo.png "Where is the red mug?" [ADDRESS]
python examples/triton/ask.py frames "What happens?" --fps 2     # a folder of pictures is a clip
"""

import argparse
import contextlib
import json
import queue
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

WAIT_S = 60


def tensor(name: str, values: np.ndarray, kind: str) -> grpc.InferInput:
    """An input tensor."""
    found = grpc.InferInput(name, list(values.shape), kind)
    found.set_data_from_numpy(values)
    return found


def pixels(path: Path) -> np.ndarray:
    """The pixels of an image file, RGB."""
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except OSError as error:
        sys.exit(f'"{path}" cannot be read as a picture: {error.strerror or error}.')


def clip(folder: Path) -> np.ndarray:
    """The pictures of a folder in the order of their names."""
    frames = [pixels(path) for path in sorted(folder.iterdir()) if path.is_file()]
    if len({frame.shape for frame in frames}) != 1:
        sys.exit(f'"{folder}" holds no frames of one size.')
    return np.stack(frames)


def main() -> None:
    """Send one question about one decoded picture or clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seen", type=Path, metavar="PICTURE", help="image file, or folder of the frames of a clip")
    parser.add_argument("question")
    parser.add_argument("address", nargs="?", default="127.0.0.1:8001", help="of gRPC (127.0.0.1:8001)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second of a clip (2)")
    given = parser.parse_args()
    options = {"do_sample": False}
    if given.seen.is_dir():
        seen = tensor("CLIP", clip(given.seen), "UINT8")
        options["fps"] = given.fps
    else:
        seen = tensor("PIXELS", pixels(given.seen), "UINT8")
    responses: queue.Queue = queue.Queue()
    inputs = [
        tensor("QUESTION", np.array([given.question.encode()], np.object_), "BYTES"),
        seen,
        tensor("OPTIONS", np.array([json.dumps(options).encode()], np.object_), "BYTES"),
    ]
    with grpc.InferenceServerClient(given.address) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        with contextlib.suppress(InferenceServerException):  # the callback is told why
            client.async_stream_infer("qwenvl", inputs)
        while True:
            try:
                result, error = responses.get(timeout=WAIT_S)
            except queue.Empty:
                sys.exit(f"The server at {given.address} says nothing for {WAIT_S} seconds.")
            if error is not None:
                sys.exit(f"The server at {given.address} says: {' '.join(str(error.message()).split())}")
            print(result.as_numpy("TEXT")[0].decode(), end="", flush=True)
            answer = result.as_numpy("ANSWER")
            if answer is not None:
                break
        client.stop_stream()
    print(f"\n{json.dumps(json.loads(answer[0]), ensure_ascii=False)}")


if __name__ == "__main__":
    main()
