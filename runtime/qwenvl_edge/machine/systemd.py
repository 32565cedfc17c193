"""Messages to systemd: that a service is ready, that it lives, that it stops (the protocol of sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> bool:
    """Send a state, such as READY=1 or WATCHDOG=1; return whether systemd listens.

    A unit of Type=notify sets the address; elsewhere nothing is sent. A message that cannot be sent is dropped.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
        way.sendto(state.encode(), name)
        return True
    return False
