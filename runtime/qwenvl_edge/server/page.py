"""The page at /: its files, which anybody may read, and the bundle's examples, which need the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse

from qwenvl_edge.bundle.bundle import Bundle
from qwenvl_edge.bundle.examples import FOLDER, Examples, examples_of
from qwenvl_edge.server.errors import ApiError

_STATIC = Path(__file__).parent / "static"
_NAMES = sorted(path.name for path in _STATIC.iterdir() if path.suffix in (".js", ".css"))
PAGE_FILES = {"/": _STATIC / "index.html", **{f"/static/{name}": _STATIC / name for name in _NAMES}}
"""Paths of the page's own files."""
_EXAMPLES = "/page/examples"


class Page:
    """The page on a bundle; None: without examples."""

    def __init__(self, bundle: Bundle | None) -> None:
        self._examples = Examples() if bundle is None else examples_of(bundle)
        self._pictures: dict[str, Path] = {}
        if bundle is not None:
            self._pictures = {name: bundle.file(f"{FOLDER}/{name}") for name in self._examples.pictures}

    def add_to(self, api: FastAPI) -> None:
        """Add the page's routes."""
        for path, file in PAGE_FILES.items():
            api.get(path, include_in_schema=False)(_sending(file))
        api.get(_EXAMPLES, include_in_schema=False)(self._list)
        api.get(f"{_EXAMPLES}/{{name}}", include_in_schema=False)(self._picture)

    async def _list(self) -> dict[str, Any]:
        return dataclasses.asdict(self._examples)

    async def _picture(self, name: str) -> FileResponse:
        if name not in self._pictures:
            raise ApiError(404, "the bundle has no example picture of that name.", code="route_not_found")
        return FileResponse(self._pictures[name])


def _sending(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(path)

    return send
