"""Limits and settings of a server, checked where they enter."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from qwenvl_edge.errors import QwenVLError


@dataclass(frozen=True)
class ServerLimits:
    """The most that a server takes on.

    rows: answers at once. queue: requests that wait beyond those. body_bytes: of a request. pictures: of a request,
    its history included. picture_pixels: width times height of each. messages: of a request. tokens: of an answer;
    more is refused. seconds: from the arrival of a request to its answer's end, which is cut there.
    read_seconds: for a request's body to arrive. drain_seconds: for running answers when the server stops.
    """

    rows: int = 16
    queue: int = 64
    body_bytes: int = 20 << 20
    pictures: int = 8
    picture_pixels: int = 25_000_000
    messages: int = 256
    tokens: int = 1024
    seconds: float = 120.0
    read_seconds: float = 30.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "queue" else 1):
                raise QwenVLError(
                    f"the server's limit of {name} is {value}; give at least {0 if name == 'queue' else 1}."
                )


@dataclass(frozen=True)
class ServerSettings:
    """Address of a server, and the things that it may touch.

    host, port: what to bind. model_name: the name that requests give. api_key: needed with every request if there is
    one; must be there unless the host is a loopback address. url_hosts: "name" or "name:port" from which pictures may
    be fetched. picture_folders: folders from which file: URLs may be read. log_prompts: write words and answers to the
    log.

    Raises:
        QwenVLError: no key on an address that others reach, or a folder that is not there.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "qwen-vl"
    api_key: str | None = field(default=None, repr=False)
    url_hosts: tuple[str, ...] = ()
    picture_folders: tuple[Path, ...] = ()
    log_prompts: bool = False
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        if self.api_key is None and not self.is_loopback:
            raise QwenVLError(
                f"{self.host} can be reached by others: give --api-key-file, or bind to 127.0.0.1, the default."
            )
        if self.api_key is not None and len(self.api_key) < 16:
            raise QwenVLError("the API key has fewer than 16 characters; make one with `openssl rand -hex 32`.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise QwenVLError("the API key holds characters that a header cannot carry; use letters and digits.")
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


def read_api_key(path: Path) -> str:
    """Return the first line of a file.

    Raises:
        QwenVLError: the file cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QwenVLError(f"cannot read the API key in {path}: {error}.") from None
    if not lines or not lines[0].strip():
        raise QwenVLError(f"{path} is empty; write the API key into its first line.")
    return lines[0].strip()
