"""The bundle: one self-contained folder with the graphs, the tokenizer and a manifest that says what they are.

Everything is checked before anything is executed: the manifest's keys and types, that every path stays inside the
folder, sizes, and SHA-256 (of files up to 64 MB at every open, of all of them by `Bundle.check_files`).
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from qwenvl_edge.bundle.embedding import EmbeddingTable
from qwenvl_edge.bundle.files import HASHED_AT_OPEN_BYTES, check_files
from qwenvl_edge.bundle.manifest import MANIFEST_NAME, Manifest
from qwenvl_edge.errors import BundleError


@dataclass(frozen=True)
class Bundle:
    """An opened, checked bundle."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open the bundle in folder `path` and check it.

        Raises:
            BundleError: the folder is missing, not a bundle, truncated, altered, of another format version, or names
                a file outside itself.
        """
        folder = Path(path)
        if not folder.exists():
            if replaced := sorted(folder.parent.glob(f"{glob.escape(folder.name)}.old-*")):
                raise BundleError(
                    f'there is no bundle at "{folder}": its replacement was cut short; rename "{replaced[-1]}", the '
                    f'old one, to "{folder.name}", or export again.'
                )
            raise BundleError(f'there is no bundle at "{folder}"; make one with `qwenvl export CHECKPOINT BUNDLE`.')
        if not folder.is_dir():
            raise BundleError(f'"{folder}" is a file, not a bundle; give the folder that `qwenvl export` wrote.')
        manifest_path = folder / MANIFEST_NAME
        if not manifest_path.is_file():
            raise BundleError(f'"{folder}" holds no {MANIFEST_NAME}, so it is not a bundle.')
        try:
            text = manifest_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f'cannot read "{manifest_path}": {error}.') from None
        bundle = cls(folder, Manifest.from_json(text))
        bundle.check_files(HASHED_AT_OPEN_BYTES)
        return bundle

    def file(self, name: str) -> Path:
        """Where the bundle's file `name` lies.

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
