"""Makes a source package's bytes depend on its contents alone: python release/normalise_sdist.py FILE FOLDER."""

import gzip
import os
import sys
import tarfile
from pathlib import Path


def main() -> None:
    """Write the members in the order of their names, with SOURCE_DATE_EPOCH as their time and no owner."""
    source, folder = map(Path, sys.argv[1:])
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    with (
        tarfile.open(source) as old,
        (folder / source.name).open("wb") as file,
        gzip.GzipFile("", "wb", mtime=epoch, fileobj=file) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


if __name__ == "__main__":
    main()
