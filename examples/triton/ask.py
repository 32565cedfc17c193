"""Ask the model of examples/triton/models over gRPC; the answer streams, the last line is its JSON.

pip install 'tritonclient[grpc]' pillow
python examples/triton/ask.py models/nano/demo.png "Where is the red mug?" [ADDRESS]
"""

import argparse
import contextlib
import json
import queue
import sys

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


def main() -> None:
    """Send one question about one decoded picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("question")
    parser.add_argument("address", nargs="?", default="127.0.0.1:8001", help="of gRPC (127.0.0.1:8001)")
    given = parser.parse_args()
    try:
        pixels = np.asarray(Image.open(given.picture).convert("RGB"))
    except OSError as error:
        sys.exit(f'"{given.picture}" cannot be read as a picture: {error.strerror or error}.')
    responses: queue.Queue = queue.Queue()
    inputs = [
        tensor("QUESTION", np.array([given.question.encode()], np.object_), "BYTES"),
        tensor("PIXELS", pixels, "UINT8"),
        tensor("OPTIONS", np.array([b'{"do_sample": false}'], np.object_), "BYTES"),
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
