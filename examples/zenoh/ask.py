"""Asks a Zenoh queryable about a picture: python examples/zenoh/ask.py photo.jpg "Where is the dog?" [CONFIG]."""

import sys
from pathlib import Path

import zenoh


def main() -> int:
    """Print the reply's JSON; return 1 if it is an error, or if nobody answered."""
    picture, question, *config = sys.argv[1:]
    with zenoh.open(zenoh.Config.from_file(config[0]) if config else zenoh.Config()) as session:
        replies = session.get("qwenvl/ask", payload=Path(picture).read_bytes(), attachment=question, timeout=60)
        for reply in replies:
            print((reply.ok or reply.err).payload.to_string())
            return 0 if reply.ok else 1
    print("nobody answered", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
