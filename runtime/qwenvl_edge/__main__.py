"""`python -m qwenvl_edge`: the program `qwenvl`."""

import sys

from qwenvl_edge.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
