"""Prints every `text` and `bbox` as a line of JSON; sends `done` when it has received both."""

import json

import pyarrow as pa
from dora import Node


def main() -> None:
    """Print events until the inputs close."""
    node = Node()
    seen: set[str] = set()
    for event in node:
        if event["type"] == "INPUT":
            event["metadata"].pop("timestamp")
            line = {"id": event["id"], "value": event["value"].to_pylist(), "type": str(event["value"].type)}
            print(json.dumps({**line, "metadata": event["metadata"]}, ensure_ascii=False), flush=True)
            seen.add(event["id"])
            if seen == {"text", "bbox"}:
                node.send_output("done", pa.array([1]))


if __name__ == "__main__":
    main()
