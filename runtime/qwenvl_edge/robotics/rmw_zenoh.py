"""A node among those of rmw_zenoh without ROS: `python -m qwenvl_edge.robotics.rmw_zenoh BUNDLE --image /camera`.

A robot's nodes with RMW_IMPLEMENTATION=rmw_zenoh_cpp see an ordinary node; `wires/wire_node.py` has its topics.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qwenvl_edge.robotics.command import run_command
from qwenvl_edge.robotics.wires.wire_node import absolute_name, run_node, wire_parser
from qwenvl_edge.robotics.wires.zenoh_session import ZenohWire, warn_without_router


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until interrupted; return the exit code."""
    parser = wire_parser("qwenvl_edge.robotics.rmw_zenoh", "Qwen-VL as a node among those of rmw_zenoh.")
    parser.add_argument(
        "--config",
        default=os.environ.get("ZENOH_SESSION_CONFIG_URI"),
        metavar="FILE",
        help="a Zenoh configuration (ZENOH_SESSION_CONFIG_URI; else as rmw_zenoh's, with a router on this machine)",
    )
    arguments = parser.parse_args(argv)

    def open_wire() -> ZenohWire:
        wire = ZenohWire(arguments.domain, absolute_name(arguments), arguments.config)
        if arguments.config is None:
            warn_without_router(wire)
        return wire

    return run_command(parser.prog, lambda: run_node(arguments, open_wire))


if __name__ == "__main__":
    sys.exit(main())
