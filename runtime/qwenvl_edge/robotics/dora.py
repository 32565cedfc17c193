"""A dora node: `python -m qwenvl_edge.robotics.dora BUNDLE`, in a dataflow by way of examples/dora/vlm.py.

Inputs: `image` as dora's camera nodes send it (a flat uint8 array; metadata `encoding`, `width`, `height`), with
queue_size 1; `text`, a question about the newest frame, as an array of one string.

Outputs, one of each for every answer: `text`, an array of one string; `bbox` in the form of dora-yolo, which
dora-rerun draws: one struct of `bbox` (float32 pixels x1, y1, x2, y2, box after box), `conf` (always 1, because the
model gives none) and `labels`. Their metadata is the frame's and, over it, the question's, with `primitive` for
dora-rerun, and `format` "xyxy" for boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.families.places import Box
from qwenvl_edge.inputs.cancel import CancelToken
from qwenvl_edge.robotics.command import add_prompt_options, node_parser, open_engine, read_settings, run_command
from qwenvl_edge.robotics.images import frame_to_rgb
from qwenvl_edge.robotics.messages import Messages
from qwenvl_edge.robotics.node import NodeAnswer, VlmNode

_ALL_INPUTS_CLOSED = "ALL_INPUTS_CLOSED"
_TIMEOUT = "Timeout event stream error"  # how `next` says that nothing came in time


class DoraNode:
    """Connects a VlmNode with a dora.Node; one thread does everything, because a dora.Node is for one thread."""

    def __init__(self, node: Any, vlm: VlmNode) -> None:
        self._node = node
        self._vlm = vlm
        self._stop = CancelToken()
        self._open = True
        self._messages = Messages(node.log_error)

    def run(self) -> None:
        """Answer until the dataflow is stopped, or until all inputs are closed and what came is answered."""
        while self._open:
            self._receive(self._node.next(timeout=self._vlm.wait_s()))
            self._receive_waiting()
            self._answer_waiting()

    def _receive_waiting(self) -> None:
        for event in self._node.drain():
            self._receive(event)

    def _receive(self, event: dict[str, Any] | None) -> None:
        if event is None:
            self._open = False
        elif event["type"] == "STOP":
            self._open = False
            if event["id"] != _ALL_INPUTS_CLOSED:
                self._stop.cancel()
        elif event["type"] == "ERROR":
            if not str(event.get("error")).startswith(_TIMEOUT):
                self._messages.log(str(event.get("error")).partition("\n")[0])
        elif event["type"] == "INPUT":
            with self._messages.passing_over(f"input {event.get('id')}"):
                self._take_input(event)

    def _take_input(self, event: dict[str, Any]) -> None:
        metadata = dict(event["metadata"])
        sent = metadata.pop("timestamp", None)
        if event["id"] == "image":
            pixels = frame_to_rgb(
                event["value"].to_numpy(zero_copy_only=False),
                metadata.get("encoding", "bgr8"),
                metadata.get("width", 0),
                metadata.get("height", 0),
            )
            age_s = 0.0 if sent is None else (self._node.timestamp() - sent).total_seconds()
            self._vlm.put_frame(pixels, age_s=age_s, header=metadata)
        elif event["id"] == "text":
            words = event["value"].to_pylist()
            if len(words) != 1 or not isinstance(words[0], str):
                raise PromptError("the value is not an array of one string; send pyarrow.array([question]).")
            self._vlm.put_question(words[0], header=metadata)
        else:
            raise PromptError("there is no such input; connect `image` and `text`.")

    def _answer_waiting(self) -> None:
        while not self._stop.cancelled:
            try:
                # Inputs are read between the pieces of an answer, so that a stop ends it and frames do not grow old.
                answer = self._vlm.step(lambda piece: self._receive_waiting(), cancel=self._stop)
            except QwenVLError as error:
                self._messages.log(str(error))
                continue
            if answer is None:
                return
            with self._messages.passing_over("the answer"):
                self._send(answer)

    def _send(self, answer: NodeAnswer) -> None:
        import pyarrow as pa

        metadata = {**(answer.frame.header or {}), **(answer.question.header or {})}
        text = {**metadata, "primitive": "text", "finish_reason": answer.reply.finish_reason}
        self._node.send_output("text", pa.array([answer.reply.text]), text)
        boxes = {**metadata, "primitive": "boxes2d", "format": "xyxy"}
        self._node.send_output("bbox", encode_boxes(answer.reply.boxes), boxes)


def encode_boxes(boxes: Sequence[Box]) -> Any:
    """Return boxes as a pyarrow StructArray of length 1, as dora-yolo sends them."""
    import pyarrow as pa

    kind = pa.struct(
        [("bbox", pa.list_(pa.float32())), ("conf", pa.list_(pa.float32())), ("labels", pa.list_(pa.string()))]
    )
    corners = [side for box in boxes for side in (box.x1, box.y1, box.x2, box.y2)]
    return pa.array([{"bbox": corners, "conf": [1.0] * len(boxes), "labels": [box.label for box in boxes]}], type=kind)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node inside a dataflow; return the exit code."""
    parser = node_parser("qwenvl_edge.robotics.dora", "Qwen-VL as a node of a dora dataflow.")
    add_prompt_options(parser)
    arguments = parser.parse_args(argv)

    def run() -> None:
        node_class = _import_node()
        vlm = VlmNode(open_engine(arguments), read_settings(arguments))
        DoraNode(node_class(), vlm).run()

    return run_command(parser.prog, run)


def _import_node() -> Any:
    try:
        from dora import Node
    except ImportError:
        raise QwenVLError(
            "this node needs dora-rs, which is not installed (it takes Python 3.11 or newer); run: "
            "pip install 'qwenvl-edge[dora]'"
        ) from None
    return Node


if __name__ == "__main__":
    sys.exit(main())
