"""On which kind of file system does a folder lie? Kernel notifications do not cross a network."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

NETWORK_TYPES = frozenset(
    ("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs")
    + ("virtiofs", "vboxsf", "vmhgfs", "ncp", "ncpfs", "davfs", "drvfs", "pvfs2", "orangefs")
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def file_system_type(folder: PurePosixPath, mountinfo: str) -> str:
    """Type of the mount that holds the absolute ``folder``, from the text of ``/proc/self/mountinfo`` (proc(5)); "" if none.

    Of several mounts at one point the last in the table lies on top.
    """
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, mark, right = line.partition(" - ")
        fields = left.split(" ")
        if not mark or len(fields) < 5:
            continue
        point = PurePosixPath(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def is_network_type(kind: str) -> bool:
    """True where another host can write unseen by inotify; FUSE counts, since what lies behind it is unknown."""
    return kind in NETWORK_TYPES or kind == "fuse" or kind.startswith("fuse.")


def lies_on_network(folder: Path) -> bool:
    """True when the folder is on a network file system; False where the kernel's table cannot be read."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        return is_network_type(file_system_type(PurePosixPath(folder.resolve()), table))
    except OSError:
        return False
