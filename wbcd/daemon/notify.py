"""The sd_notify protocol, which systemd documents as stable: one datagram of ``KEY=value`` lines."""

from __future__ import annotations

import socket
from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager, or to nobody where ``NOTIFY_SOCKET`` is not set."""

    def __init__(self, env: Mapping[str, str]) -> None:
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = env.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() else None

    def send(self, **values: str) -> None:
        """``send(READY="1", STATUS="...")``. A manager that does not listen is no reason to stop working."""
        if not self._address:
            return
        message = "\n".join(f"{key}={value.replace(chr(10), ' ')}" for key, value in values.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(message.encode(errors="replace"), self._address)
        except OSError:
            return
