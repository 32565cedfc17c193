"""Ask the model of examples/triton/models over gRPC; the answer streams, the last line is its JSON.

pip install 'tritonclient[grpc]' pillow
python examples/triton/ask.py models/nano/demo.png "Where is the red mug?" [ADDRESS]
"""

import json
import queue
import sys

import numpy as np
from PIL import Image
from tritonclient import grpc


def tensor(name: str, values: np.ndarray, kind: str) -> grpc.InferInput:
    """An input tensor."""
    found = grpc.InferInput(name, list(values.shape), kind)
    found.set_data_from_numpy(values)
    return found


def main(picture: str, question: str, address: str = "127.0.0.1:8001") -> None:
    """Send one question about one decoded picture."""
    responses: queue.Queue = queue.Queue()
    inputs = [
        tensor("QUESTION", np.array([question.encode()], np.object_), "BYTES"),
        tensor("PIXELS", np.asarray(Image.open(picture).convert("RGB")), "UINT8"),
        tensor("OPTIONS", np.array([b'{"do_sample": false}'], np.object_), "BYTES"),
    ]
    with grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer("qwenvl", inputs)
        while True:
            result, error = responses.get(timeout=60)
            if error is not None:
                raise SystemExit(f"the server says: {error.message()}")
            print(result.as_numpy("TEXT")[0].decode(), end="", flush=True)
            answer = result.as_numpy("ANSWER")
            if answer is not None:
                break
        client.stop_stream()
    print(f"\n{json.dumps(json.loads(answer[0]), ensure_ascii=False)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
