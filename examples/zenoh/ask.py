"""Asks a Zenoh queryable about a picture: python examples/zenoh/ask.py photo.jpg "Where is the dog?" [CONFIG]."""

import argparse
import sys
from pathlib import Path

import zenoh


def main() -> int:
    """Print the reply's JSON; return 1 if it is an error, or if nobody answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("config", nargs="?", help="Zenoh's configuration (JSON5)")
    given = parser.parse_args()
    try:
        picture = given.picture.read_bytes()
        config = zenoh.Config.from_file(given.config) if given.config else zenoh.Config()
        session = zenoh.open(config)
    except OSError as error:
        sys.exit(f'"{given.picture}" cannot be read: {error.strerror}.')
    except zenoh.ZError as error:
        reason = " ".join(str(error).split(" at /")[0].split())  # the rest names Zenoh's source
        sys.exit(f"Zenoh cannot start: {reason}; look at the configuration.")
    with session:
        for reply in session.get("qwenvl/ask", payload=picture, attachment=given.question, timeout=60):
            print((reply.ok or reply.err).payload.to_string())
            return 0 if reply.ok else 1
    sys.exit("Nobody answers qwenvl/ask; start `python -m qwenvl_edge.robotics.zenoh BUNDLE`.")


if __name__ == "__main__":
    sys.exit(main())
