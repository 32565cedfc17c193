"""A node on ROS 2's DDS wire without ROS: `python -m qwenvl_edge.robotics.dds BUNDLE --image /camera/image_raw`.

A robot's nodes on Cyclone DDS or Fast DDS see an ordinary node; `wires/wire_node.py` has its topics.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qwenvl_edge.robotics.command import run_command
from qwenvl_edge.robotics.wires.dds_participant import Participant
from qwenvl_edge.robotics.wires.wire_node import absolute_name, run_node, wire_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until interrupted; return the exit code."""
    parser = wire_parser("qwenvl_edge.robotics.dds", "Qwen-VL as a node on ROS 2's DDS wire.")
    parser.add_argument(
        "--distribution",
        default=os.environ.get("ROS_DISTRO", "jazzy"),
        metavar="NAME",
        help="the robot's ROS: humble, or any newer one (ROS_DISTRO, else jazzy)",
    )
    arguments = parser.parse_args(argv)

    def open_wire() -> Participant:
        return Participant(arguments.domain, absolute_name(arguments), distribution=arguments.distribution)

    return run_command(parser.prog, lambda: run_node(arguments, open_wire))


if __name__ == "__main__":
    sys.exit(main())
