"""Limits and settings of a server, checked where they enter."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl_edge.errors import QwenVLError

_MOST_PORT = 65_535


@dataclass(frozen=True)
class ServerLimits:
    """The most that a server takes on.

    rows: answers at once. queue: requests that wait beyond those. body_bytes: of a request. memory_bytes: of all
    bodies that arrive and all pictures that wait. pictures: of a request, its history included. picture_pixels: width
    times height of each. clips: of a request. frames: of each. clip_pixels: of all its frames, also those between the
    ones that are taken. messages: of a request. tokens: of an answer; one that asks for more is cut there.
    connections: open ones. seconds: from the arrival of a request to its answer's end, which is cut there.
    read_seconds: for a request's body to arrive, and for its answer to be read. header_seconds: for a request's
    header to arrive. idle_seconds: for a new connection to begin a request. drain_seconds: for running answers when
    the server stops.
    """

    rows: int = 16
    queue: int = 64
    body_bytes: int = 20 << 20
    memory_bytes: int = 512 << 20
    pictures: int = 8
    picture_pixels: int = 25_000_000
    clips: int = 2
    frames: int = 128
    clip_pixels: int = 1_000_000_000
    messages: int = 256
    tokens: int = 1024
    connections: int = 512
    seconds: float = 120.0
    read_seconds: float = 30.0
    header_seconds: float = 10.0
    idle_seconds: float = 30.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= (0 if name == "queue" else 1):
                raise QwenVLError(
                    f"the server's limit of {name} is {value}; give at least {0 if name == 'queue' else 1}."
                )


@dataclass(frozen=True)
class ServerSettings:
    """Address of a server, and the things that it may touch.

    host, port: what to bind. model_name: the name that requests give. api_keys: one of them is needed with every
    request if there are some; there must be one unless the host is a loopback address. What is computed for one key is
    never used for another. origins: those of other web pages that may ask. url_hosts: "name" or "name:port" from which
    pictures may be fetched. picture_folders: folders from which file: URLs may be read. keep_order: pictures stay
    after the words of their message where a client puts them. tell_cached: answers say how many tokens were computed
    before.
    log_prompts: write words and answers to the log. log_format: "json", "text", or "auto" (text on a terminal).

    Raises:
        QwenVLError: no key on an address that others reach, or a folder that is not there.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "qwen-vl"
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    url_hosts: tuple[str, ...] = ()
    picture_folders: tuple[Path, ...] = ()
    keep_order: bool = False
    tell_cached: bool = True
    log_prompts: bool = False
    log_format: str = "auto"
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise QwenVLError(f"the port is {self.port}; it must be a number from 0 (a free one) to 65535.")
        if not self.api_keys and not self.is_loopback:
            raise QwenVLError(
                f"{self.host} can be reached by others: give --api-key-file, or bind to 127.0.0.1, the default."
            )
        for key in self.api_keys:
            if len(key) < 16:
                raise QwenVLError("an API key has fewer than 16 characters; make one with `openssl rand -hex 32`.")
            if not (key.isascii() and key.isprintable()):
                raise QwenVLError("an API key holds characters that a header cannot carry; use letters and digits.")
        if not 0 <= self.port <= _MOST_PORT:
            raise QwenVLError(f"the port is {self.port}; give one from 1 to {_MOST_PORT}, or 0 for any that is free.")
        for host in self.url_hosts:
            if not re.fullmatch(r"[^\s/@?#]+", host):
                raise QwenVLError(f"the host {host!r} is none; give NAME or NAME:PORT, such as pictures.example.")
        for origin in self.origins:
            if origin != "null" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise QwenVLError(f"the origin {origin!r} is none; give scheme and host, such as https://chat.example.")
        for folder in self.picture_folders:
            if not folder.is_dir():
                raise QwenVLError(f"the picture folder {folder} is not there; create it or leave it out.")

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can connect."""
        return self.host == "localhost" or is_loopback(self.host)


def is_loopback(address: str) -> bool:
    """Return whether an IP address is this machine's own; a name is not."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Return the lines of a file, a key each; empty ones and those that begin with # are passed over.

    Raises:
        QwenVLError: the file cannot be read or holds no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise QwenVLError(f"cannot read the API key in {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise QwenVLError(f"cannot read the API key in {path}: it is no text.") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise QwenVLError(f"{path} is empty; write an API key into its first line.")
    return keys
