"""JSON files of a checkpoint, read so that whatever they hold ends in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwenvl_edge.errors import CheckpointError
from qwenvl_edge_export.checkpoint.file_kinds import read_head, reason

_MOST_BYTES = 64 << 20


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; a byte order mark of UTF-8 is skipped.

    Raises:
        CheckpointError: the file is missing, unreadable, no JSON, too large or too deep, or holds something else.
    """
    head = read_head(path)
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise CheckpointError(f'"{path}" has {size / 1e6:,.0f} MB, which is no configuration; download it again.')
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text)
    except UnicodeDecodeError:
        wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        kind = "text in UTF-16; save it as UTF-8" if wide else "not text in UTF-8; download it again"
        raise CheckpointError(f'"{path}" is {kind}.') from None
    except RecursionError:
        raise CheckpointError(f'cannot read "{path}": it is nested too deeply to be a configuration.') from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f'cannot read "{path}": it is not JSON ({reason(error)}).') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'"{path}" is not a JSON object.')
    return content


def read_optional(path: Path) -> dict[str, Any]:
    """Like `read_object`; a file that is not there is an empty object."""
    return read_object(path) if path.exists() or path.is_symlink() else {}
