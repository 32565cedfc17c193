"""Pictures from URLs of listed hosts.

Against requests forged through the server (SSRF): a host must be listed by name and port; its addresses are looked up
once, all of them must be public, and the connection goes to the address that was checked, so that a name which
changes its address in between (DNS rebinding) gains nothing; redirects are not followed. An address that is listed as
such, "192.168.1.20:8080", may be private: that is the operator's own choice. Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urlsplit

from qwenvl_edge.server.errors import ApiError

_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16


class Fetcher:
    """Fetches from `hosts` ("name" or "name:port"), at most `limit` bytes within `timeout_s`."""

    def __init__(self, hosts: tuple[str, ...], *, limit: int, timeout_s: float = 10.0) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._limit = limit
        self._timeout_s = timeout_s

    def fetch(self, url: str) -> bytes:
        """Return the body of a URL.

        Raises:
            ApiError: the host is not listed, its address is private, or the answer is no plain 200 of a fair size.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
            host = (parts.hostname or "").lower()
        except (ValueError, KeyError):
            raise _refused("the picture's URL is malformed") from None
        usual = port == _PORTS[parts.scheme]
        name = f"[{host}]" if ":" in host else host
        if not ((usual and name in self._hosts) or f"{name}:{port}" in self._hosts) or parts.username is not None:
            raise _refused("pictures are not fetched from this host; the server's --allow-url-host lists those allowed")
        deadline = time.monotonic() + self._timeout_s
        try:
            return self._get(parts, host, port, _address(host, port), deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refused(f"the picture cannot be fetched ({type(error).__name__})") from None

    def _get(self, parts: SplitResult, host: str, port: int, address: str, deadline: float) -> bytes:
        left = max(0.01, deadline - time.monotonic())
        connection = _Connection(host, port, address, tls=parts.scheme == "https", timeout=left)
        # A timeout of a socket starts anew with every byte; this one covers handshake, header and body together.
        watch = threading.Timer(left, connection.shut)
        watch.daemon = True
        watch.start()
        try:
            path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
            connection.request("GET", path, headers={"Accept": "image/*"})
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(f"the picture's host answered {response.status}; redirects are not followed")
            if not (response.getheader("Content-Length") or "0").isdigit():
                raise _refused("the picture's host gave no valid length")
            body = bytearray()
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > self._limit:
                    raise _refused(f"the picture has more than {self._limit:,} bytes")
                if time.monotonic() > deadline:
                    raise _refused("the picture's host is too slow")
            if response.length:
                raise _refused("the picture's host ended before all of it came")
            return bytes(body)
        finally:
            watch.cancel()
            connection.close()


class _Connection(http.client.HTTPConnection):
    """Connects to one address, whatever the host's name means by now; TLS checks the name."""

    def __init__(self, host: str, port: int, address: str, *, tls: bool, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address
        self._tls = ssl.create_default_context() if tls else None

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls is not None:
            secured = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = secured
            secured.do_handshake()  # after `sock` is set, so that shut ends it

    def shut(self) -> None:
        """End whatever waits for the host; called in another thread."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _address(host: str, port: int) -> str:
    """The address to connect to; public, unless the host is an address itself, which then was listed as such."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    if not found or not all(map(_is_public, found)):
        raise _refused("the picture's host has a private address")
    return min(found)


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    return all(each.is_global and not each.is_multicast for each in (parsed, mapped) if each is not None)


def _refused(reason: str) -> ApiError:
    return ApiError(400, f"{reason}.", param="messages", code="invalid_image_url")
