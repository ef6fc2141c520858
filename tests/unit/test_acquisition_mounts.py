"""Network file systems are found in the kernel's table."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from wbcd.acquisition.mounts import file_system_type, is_network_type, lies_on_network

TABLE = r"""22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /mnt/scope rw,relatime shared:2 master:3 - cifs //scope/data rw
41 22 0:41 / /mnt/my\040share rw,relatime - nfs4 server:/x rw
42 40 0:42 / /mnt/scope/fast rw - xfs /dev/sdb rw
43 22 0:43 / /mnt/over rw - ext4 /dev/sdc rw
44 22 0:44 / /mnt/over rw - fuse.sshfs host: rw
a broken line
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/data", "ext4"),
        ("/mnt/scope", "cifs"),
        ("/mnt/scope/today", "cifs"),
        ("/mnt/scopeless", "ext4"),
        ("/mnt/my share/a", "nfs4"),
        ("/mnt/scope/fast/a", "xfs"),
        ("/mnt/over", "fuse.sshfs"),
    ],
)
def test_longest_mount_point_wins_and_the_last_lies_on_top(folder, kind):
    assert file_system_type(PurePosixPath(folder), TABLE) == kind


@pytest.mark.parametrize(
    ("kind", "network"), [("cifs", True), ("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False), ("", False)]
)
def test_kinds(kind, network):
    assert is_network_type(kind) is network


def test_the_temporary_folder_is_local(tmp_path):
    assert lies_on_network(tmp_path) is False
    assert lies_on_network(Path("/proc")) is False
