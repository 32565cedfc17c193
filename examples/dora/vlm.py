"""The VLM as a node: `path: vlm.py`, `args: BUNDLE ...`. Variables in the arguments are replaced, since dora does not.

This is a file, and not `path: python`, because dora looks programs up with `uv run`, which would first build the
project around the dataflow.
"""

import os
import sys

from qwenvl_edge.robotics.dora import main

sys.argv[1:] = map(os.path.expandvars, sys.argv[1:])
sys.exit(main())
