"""The sd_notify datagrams, as a service manager receives them."""

from __future__ import annotations

import socket
from pathlib import Path

from wbcd.daemon.notify import Notifier


def test_a_status_that_holds_a_file_name_which_is_not_utf_8_is_sent(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        Notifier({"NOTIFY_SOCKET": address}).send(READY="1", STATUS="reading caf\udce9.h5\nnow")
        assert manager.recv(4096) == b"READY=1\nSTATUS=reading caf?.h5 now"
