"""Where the bytes of one acquisition come from: its path below the watch folder, or descriptors opened by another process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wbcd.acquisition.beneath import parent_of
from wbcd.acquisition.candidate import FOLDER_SUFFIX, demand_regular, open_folder, open_regular
from wbcd.errors import Incomplete
from wbcd.records import Acquisition


@dataclass(frozen=True, slots=True)
class Held:
    """Open descriptors: of the folder that holds the acquisition, and of the acquisition (a file or a ``.zarr`` folder)."""

    parent: int
    item: int


@dataclass(frozen=True, slots=True)
class Source:
    """Opens an acquisition and what lies beside it. No component of its path below ``root`` may be a link (default: parent).

    With ``held`` the path is never opened: it was, by the process that handed the descriptors over.
    """

    acquisition: Acquisition
    root: Path | None = None
    held: Held | None = None

    @property
    def path(self) -> Path:
        """For messages."""
        return self.acquisition.path

    @property
    def is_folder(self) -> bool:
        """True for a ``.zarr`` folder, by its name."""
        return self.path.suffix.lower() == FOLDER_SUFFIX

    @contextmanager
    def parent(self) -> Iterator[int]:
        """Descriptor of the folder that the acquisition lies in."""
        if self.held is not None:
            yield self.held.parent
            return
        with parent_of(self.path, self.root) as handle:
            yield handle

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Descriptor of the regular file, or of the ``.zarr`` folder; raises NotARegularFile or NotReadable."""
        if self.held is not None:
            if not self.is_folder:
                demand_regular(os.fstat(self.held.item).st_mode, self.path)
            yield self.held.item
            return
        opener = open_folder if self.is_folder else open_regular
        with self.parent() as parent, opener(Path(self.path.name), dir_fd=parent, label=self.path) as handle:
            yield handle

    def stat(self) -> os.stat_result:
        """State of what the path names now, links not followed; raises Incomplete when it vanished."""
        with self.parent() as parent:
            try:
                return os.stat(self.path.name, dir_fd=parent, follow_symlinks=False)
            except OSError as error:
                raise Incomplete(f"{self.path} vanished while it was read: {error.strerror}.") from error
