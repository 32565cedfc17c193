"""The VLM as a node: `path: vlm.py`, `args: BUNDLE ...`.

This is a file, and not `path: python`, because dora looks programs up with `uv run`, which would first build the
project around the dataflow.
"""

import sys

from qwenvl_edge.robotics.dora import main

sys.exit(main())
