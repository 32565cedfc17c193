"""Examples of a checkpoint, copied into its bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwenvl_edge.bundle.examples import FOLDER, Examples
from qwenvl_edge.errors import CheckpointError

EXAMPLES = "qwenvl-examples.json"


def read_examples(checkpoint: Path) -> Examples | None:
    """Return the examples in a checkpoint's folder, None without any.

    Raises:
        CheckpointError: they are damaged, or name a picture that is not there.
    """
    path = checkpoint / EXAMPLES
    if not path.is_file():
        return None
    examples = Examples.read(path, CheckpointError)
    for name in examples.pictures:
        if not (checkpoint / name).is_file():
            raise CheckpointError(
                f'"{path}" names the picture "{name}", which is not beside it; add it or remove the name.'
            )
    return examples


def copy_examples(examples: Examples, checkpoint: Path, bundle: Path) -> list[str]:
    """Copy examples and their pictures; return the names of the files, relative to the bundle."""
    folder = bundle / FOLDER
    folder.mkdir()
    examples.write(folder)
    for name in examples.pictures:
        shutil.copyfile(checkpoint / name, folder / name)
    return [f"{FOLDER}/{name}" for name in (examples.FILE_NAME, *examples.pictures)]
