"""A Zenoh queryable: `python -m qwenvl_edge.robotics.zenoh BUNDLE --key robot/vlm`.

A query's payload is a picture, the bytes of an image file; its attachment the question, in UTF-8. A camera may publish
image files too (--camera KEY): a query without a payload is then about the newest of them. The reply is JSON,

    {"text", "boxes": [{"label", "x1", "y1", "x2", "y2"}], "size": [width, height], "finish_reason",
     "latency_ms", "ttft_ms", "new_tokens"}

with boxes in pixels of the picture; an error reply is {"error": one sentence}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from qwenvl_edge.errors import PromptError, QwenVLError
from qwenvl_edge.inputs.pictures import load_picture
from qwenvl_edge.machine.terminal import say
from qwenvl_edge.robotics.command import node_parser, open_engine, read_settings, run_command
from qwenvl_edge.robotics.images import compressed_to_rgb
from qwenvl_edge.robotics.messages import Messages, reason
from qwenvl_edge.robotics.node import NodeAnswer, Question, VlmNode

_WAITING = 16  # queries; more wait in the transport, where the asker's own timeout rules


class ZenohNode:
    """Answers the queries of one key, one after another.

    Args:
        session: an open zenoh.Session, the caller's to close.
        vlm: what answers.
        key: the key expression of the queryable.
        camera: a key expression of published image files, or None.
    """

    def __init__(self, session: Any, vlm: VlmNode, key: str, *, camera: str | None = None) -> None:
        import zenoh

        self._vlm = vlm
        self._messages = Messages(lambda line: say(line, to=sys.stderr))
        self._json = zenoh.Encoding.APPLICATION_JSON
        self._queryable = session.declare_queryable(key, zenoh.handlers.FifoChannel(_WAITING))
        self._subscriber = None if camera is None else session.declare_subscriber(camera, self._take_frame)

    def run(self) -> None:
        """Answer until `close`."""
        for query in self._queryable:
            # A query that is not dropped keeps its asker waiting.
            with query, self._messages.passing_over("query"):
                self._answer(query)

    def close(self) -> None:
        """Take no more queries; `run` returns when it has answered those that wait."""
        self._vlm.close()
        if self._subscriber is not None:
            self._subscriber.undeclare()
        self._queryable.undeclare()

    def _take_frame(self, sample: Any) -> None:
        with self._messages.passing_over(str(sample.key_expr)):
            self._vlm.put_frame(compressed_to_rgb(sample.payload.to_bytes()))

    def _answer(self, query: Any) -> None:
        try:
            question = _question(query)
            picture = None if not query.payload else load_picture(query.payload.to_bytes(), name="the query's payload")
            answer = self._vlm.answer(question, picture=picture)
        except QwenVLError as error:
            query.reply_err(json.dumps({"error": str(error)}), encoding=self._json)
            return
        except Exception as error:
            query.reply_err(json.dumps({"error": f"the query cannot be answered: {error}"}), encoding=self._json)
            raise
        query.reply(query.key_expr, json.dumps(encode(answer), ensure_ascii=False), encoding=self._json)


def _question(query: Any) -> Question:
    try:
        words = "" if query.attachment is None else query.attachment.to_bytes().decode()
    except UnicodeDecodeError:
        raise PromptError("the query's attachment is not UTF-8; send the question as text.") from None
    if not words.strip():
        raise PromptError("the query has no question; send it as the attachment.")
    return Question(words)


def encode(answer: NodeAnswer) -> dict[str, Any]:
    """Return the reply to a query, as this module's first lines describe it."""
    reply = answer.reply
    return {
        "text": reply.text,
        "boxes": [{"label": box.label, "x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2} for box in reply.boxes],
        "size": list(answer.frame.picture.size),
        "finish_reason": reply.finish_reason,
        "latency_ms": round(answer.latency_ms, 1),
        "ttft_ms": round(reply.stats.ttft_ms, 1),
        "new_tokens": reply.stats.new_tokens,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the queryable until interrupted; return the exit code."""
    parser = node_parser("qwenvl_edge.robotics.zenoh", "Qwen-VL as a Zenoh queryable.")
    parser.add_argument("--key", default="qwenvl/ask", metavar="KEY", help="what to answer queries of (qwenvl/ask)")
    parser.add_argument("--camera", metavar="KEY", help="image files published here are the frames")
    parser.add_argument("--config", metavar="FILE", help="a Zenoh configuration (JSON5); without it peers are scouted")
    arguments = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    zenoh = _import_zenoh()
    vlm = VlmNode(open_engine(arguments), read_settings(arguments))
    try:
        config = zenoh.Config() if arguments.config is None else zenoh.Config.from_file(arguments.config)
        session = zenoh.open(config)
    except zenoh.ZError as error:
        raise QwenVLError(f"Zenoh cannot start: {reason(error)}; look at the configuration.") from None
    with session:
        node = ZenohNode(session, vlm, arguments.key, camera=arguments.camera)
        say(f"answering queries of {arguments.key}")
        node.run()


def _import_zenoh() -> Any:
    try:
        import zenoh
    except ImportError:
        raise QwenVLError(
            "this node needs eclipse-zenoh, which is not installed; run: pip install 'qwenvl-edge[zenoh]'"
        ) from None
    return zenoh


if __name__ == "__main__":
    sys.exit(main())
