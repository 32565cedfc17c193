"""The bundle: one self-contained folder with the graphs, the tokenizer and a manifest that says what they are.

Everything is checked before anything is executed: the manifest's keys and types, that every path stays inside the
folder, sizes, the weights that the graphs name, and SHA-256: of files up to 64 MB when it is opened, of larger ones in
the background by the engine, of all by `Bundle.check_files`. Digests are remembered until a file is written to.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl_edge.bundle.embedding import EmbeddingTable
from qwenvl_edge.bundle.external_data import check_graphs
from qwenvl_edge.bundle.files import HASHED_AT_OPEN_BYTES, check_files, is_file
from qwenvl_edge.bundle.hashing import LargeFile
from qwenvl_edge.bundle.manifest import MANIFEST_NAME, Manifest
from qwenvl_edge.errors import BundleError
from qwenvl_edge.machine.urls import shown, url_of

_MOST_MANIFEST_BYTES = 8 << 20
_CHECKPOINT = "config.json"  # what a checkpoint has and a bundle has not


@dataclass(frozen=True)
class Bundle:
    """An opened, checked bundle."""

    path: Path
    manifest: Manifest
    unhashed: tuple[LargeFile, ...] = field(default=(), repr=False, compare=False)
    """Files whose SHA-256 is not known yet; an engine hashes them in the background."""

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open the bundle in folder `path` and check it.

        Raises:
            BundleError: the folder is missing, not a bundle, truncated, altered, of another format version, or names
                a file outside itself.
        """
        folder = _folder(path)
        manifest_path = folder / MANIFEST_NAME
        if not is_file(manifest_path):
            raise BundleError(f'"{shown(folder)}" holds no {MANIFEST_NAME}, so it is not a bundle{_hint(folder)}.')
        try:
            if manifest_path.stat().st_size > _MOST_MANIFEST_BYTES:
                raise BundleError(f'"{manifest_path}" is too large; export the bundle again.')
            text = manifest_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f'cannot read "{manifest_path}": {getattr(error, "strerror", None) or error}.') from None
        manifest = Manifest.from_json(text)
        unhashed = check_files(folder, manifest.files, HASHED_AT_OPEN_BYTES)
        check_graphs(folder, manifest)
        return cls(folder, manifest, unhashed)

    def file(self, name: str) -> Path:
        """Return the path of the bundle's file `name`.

        Raises:
            BundleError: the manifest does not list `name`.
        """
        if name not in self.manifest.files:
            raise BundleError(f'the bundle "{self.path}" lists no file "{name}".')
        return self.path / name

    @property
    def embedding(self) -> EmbeddingTable:
        """The embedding table, memory-mapped: embedding[ids] are its rows in float32."""
        info = self.manifest.embedding
        return EmbeddingTable(self.file(info.file), info.dtype, info.shape)

    def check_files(self, hash_up_to_bytes: int | None = None) -> None:
        """Check that every file is there with its size, and the SHA-256 of those up to a size (None: of all).

        Raises:
            BundleError: names the first file that is missing, truncated or altered.
        """
        check_files(self.path, self.manifest.files, hash_up_to_bytes)


def _folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle. Raises BundleError where there is none."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise BundleError(f"bundle is of type {type(path).__name__}; give the folder that `qwenvl export` wrote.")
    folder = Path(path)
    try:
        mode = folder.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(_missing(path, folder)) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(f'cannot open the bundle "{shown(folder)}": {reason}.') from None
    if not stat.S_ISDIR(mode):
        raise BundleError(f'"{shown(folder)}" is a file, not a bundle; give the folder that `qwenvl export` wrote.')
    return folder


def _missing(path: str | os.PathLike[str], folder: Path) -> str:
    """Say that there is no bundle, and why: an address, or a replacement that was cut short."""
    if url := url_of(path):
        return f"{shown(url)} is a URL; download the bundle and give its folder."
    with contextlib.suppress(OSError):
        if replaced := sorted(folder.parent.glob(f"{glob.escape(folder.name)}.old-*")):
            return (
                f'there is no bundle at "{folder}": its replacement was cut short; rename "{replaced[-1]}", the old '
                f'one, to "{folder.name}", or export again.'
            )
    return f'there is no bundle at "{shown(folder)}"; make one with `qwenvl export CHECKPOINT BUNDLE`.'


def _hint(folder: Path) -> str:
    """Say what a folder is that is no bundle: a checkpoint, or the parent of bundles."""
    with contextlib.suppress(OSError):
        if (folder / _CHECKPOINT).is_file():
            return f" but a checkpoint; make one of it with `qwenvl export {folder} BUNDLE`"
        if inside := sorted(folder.glob(f"*/{MANIFEST_NAME}"))[:1]:
            return f'; "{inside[0].parent}" is one'
    return ""
