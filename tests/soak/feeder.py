"""The soak's writer: good, empty, damaged and hostile files without end, and a truth file that says how each must end.

A file is known by the digest of its bytes, which is what "once" is about: a copy, a rename or a touch of counted content
must add no row, a rewrite must add one. What has no bytes to digest (a FIFO, a link, a folder) is known by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
from helpers_spheres import MEDIUM, VOXEL_UM, sphere

from wbcd.acquisition import identify
from wbcd.simulation.files import write_ome_zarr_ri, write_tcf

MEASURED, REJECTED, SET_ASIDE = "measured", "rejected", "set_aside"


@dataclass(frozen=True)
class Truth:
    """How one content must end. ``cells``: accepted ones. ``path`` stands for what has no content."""

    kind: str
    outcome: str
    cells: int
    content_id: str | None
    path: str


class Feeder:
    """Writes one file at each :meth:`write`; ``weights`` of the kinds are those of a bad day at an instrument."""

    def __init__(self, folder: Path, truth_file: Path, seed: int) -> None:
        self.folder = folder
        self.truth: dict[str, Truth] = {}
        self.passing: set[str] = set()  # states that a growing file went through: they may be met, and must not count
        self.written: dict[str, int] = {}
        self.holds: dict[str, str] = {}  # path -> the content that it was given last
        self.rewritten = 0
        self._file = truth_file.open("a")
        self._chance = random.Random(seed)
        self._number = 0
        self._kinds: dict[str, tuple[float, Callable[[Path], None]]] = {
            "one cell": (30, self._one_cell),
            "two cells": (10, self._two_cells),
            "zarr": (4, self._zarr),
            "growing": (6, self._growing),
            "empty field": (6, lambda path: self._tcf(path, [sphere(0.0)], REJECTED, 0)),
            "cell too small": (6, lambda path: self._tcf(path, [sphere(1.5 + self._spread(0.05))], REJECTED, 0)),
            "wrong scale": (2, self._wrong_scale),
            "truncated": (6, self._truncated),
            "not HDF5": (4, self._not_hdf5),
            "external link": (2, self._external_link),
            "declares too much": (2, self._bomb),
            "missing dataset": (3, self._missing),
            "fifo": (1, self._fifo),
            "link out": (1, self._link),
            "directory": (1, self._directory),
            "sparse": (1, self._sparse),
        }

    def write(self) -> None:
        """One more file of a kind drawn by chance."""
        kinds = list(self._kinds)
        kind = self._chance.choices(kinds, [self._kinds[name][0] for name in kinds])[0]
        self._number += 1
        self._kind = kind
        self._kinds[kind][1](self.folder / f"{self._number:06d}.TCF")
        self.written[kind] = self.written.get(kind, 0) + 1

    # --- with files that are counted ---

    def copy(self, path: Path) -> None:
        """The same bytes under another name: no row."""
        self._number += 1
        hidden = self.folder / f".copy-{self._number}"
        shutil.copyfile(path, hidden)
        self._now_at(self.folder / f"{self._number:06d}-copy.TCF", self.holds[str(path)])
        hidden.rename(self.folder / f"{self._number:06d}-copy.TCF")
        self._tell("copied")

    def rename(self, path: Path) -> None:
        """The same file under another name: no row."""
        self._number += 1
        self._now_at(self.folder / f"{self._number:06d}-renamed.TCF", self.holds.pop(str(path)))
        path.rename(self.folder / f"{self._number:06d}-renamed.TCF")
        self._tell("renamed")

    def touch(self, path: Path) -> None:
        """Another mtime: no row."""
        path.touch()
        self._tell("touched")

    def rewrite(self, path: Path) -> None:
        """Other bytes under the name of what was counted: one row more, and a flag."""
        self._kind = "rewritten"
        self._tcf(path, [sphere(3.0 + self._spread(1.0))], MEASURED, 1)
        self.rewritten += 1
        self._tell("rewritten")

    # --- kinds ---

    def _one_cell(self, path: Path) -> None:
        self._tcf(path, [sphere(2.6 + self._spread(1.4))], MEASURED, 1)

    def _two_cells(self, path: Path) -> None:
        self._tcf(path, [sphere(2.6 + self._spread(1.4)), sphere(2.6 + self._spread(1.4))], MEASURED, 2)

    def _zarr(self, path: Path) -> None:
        path = write_ome_zarr_ri(
            path.with_suffix(".zarr"), sphere(2.6 + self._spread(1.4)), voxel_um=VOXEL_UM, medium_ri=MEDIUM
        )
        self._expect(path, MEASURED, 1, identify(path).content_id)

    def _growing(self, path: Path) -> None:
        """In place and in pieces, as an instrument without manners writes."""
        hidden = self._hidden(path)
        write_tcf(hidden, [sphere(2.6 + self._spread(1.4))], voxel_um=VOXEL_UM, title=f"growing-{self._number}")
        data = hidden.read_bytes()
        hidden.unlink()
        step = len(data) // 3 + 1
        for end in range(step, len(data), step):
            self.passing.add(hashlib.blake2b(data[:end], digest_size=20).hexdigest())
        self.passing.add(hashlib.blake2b(b"", digest_size=20).hexdigest())
        self._expect(path, MEASURED, 1, hashlib.blake2b(data, digest_size=20).hexdigest())
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(data), step):
                file.write(data[start : start + step])

    def _wrong_scale(self, path: Path) -> None:
        self._tcf(path, [sphere(3.0 + self._spread(0.5)) * 1.4], REJECTED, 0)

    def _truncated(self, path: Path) -> None:
        hidden = self._hidden(path)
        write_tcf(hidden, [sphere(3.0)], voxel_um=VOXEL_UM, title=f"truncated-{self._number}")
        os.truncate(hidden, int(hidden.stat().st_size * self._chance.uniform(0.2, 0.95)))
        self._publish(hidden, path, SET_ASIDE)

    def _not_hdf5(self, path: Path) -> None:
        hidden = self._hidden(path)
        hidden.write_bytes(self._chance.randbytes(self._chance.randint(1, 50_000)))
        self._publish(hidden, path, SET_ASIDE)

    def _external_link(self, path: Path) -> None:
        """The RI volume is a link into a system file's place."""
        hidden = self._hidden(path)
        write_tcf(hidden, [sphere(3.0)], voxel_um=VOXEL_UM, title=f"link-{self._number}")
        with h5py.File(hidden, "r+", locking=False) as file:
            del file["Data/3D/000000"]
            file["Data/3D/000000"] = h5py.ExternalLink("/etc/hostname", "/x")
        self._publish(hidden, path, SET_ASIDE)

    def _bomb(self, path: Path) -> None:
        """A few kilobytes that declare a petabyte."""
        hidden = self._hidden(path)
        write_tcf(hidden, [sphere(3.0)], voxel_um=VOXEL_UM, title=f"bomb-{self._number}")
        with h5py.File(hidden, "r+", locking=False) as file:
            del file["Data/3D/000000"]
            file["Data/3D"].create_dataset("000000", shape=(100_000, 100_000, 100_000), dtype="u2", chunks=(64, 64, 64))
        self._publish(hidden, path, SET_ASIDE)

    def _missing(self, path: Path) -> None:
        hidden = self._hidden(path)
        with h5py.File(hidden, "w") as file:
            file.attrs["FormatVersion"] = np.array([b"1.3"])
            file.attrs["Number"] = self._number
            file.create_group("Data/3D")
        self._publish(hidden, path, SET_ASIDE)

    def _fifo(self, path: Path) -> None:
        os.mkfifo(path)
        self._expect(path, SET_ASIDE, 0, None)

    def _link(self, path: Path) -> None:
        path.symlink_to("/etc/hostname")
        self._expect(path, SET_ASIDE, 0, None)

    def _directory(self, path: Path) -> None:
        path = path.with_suffix(".h5")
        path.mkdir()
        self._expect(path, SET_ASIDE, 0, None)

    def _sparse(self, path: Path) -> None:
        """1 TB that takes no room on the disk; too long to be hashed, so that it is known by its path."""
        hidden = self._hidden(path)
        hidden.touch()
        os.truncate(hidden, 2**40)
        self._expect(path, SET_ASIDE, 0, None)
        hidden.rename(path)

    # --- how ---

    def _spread(self, width: float) -> float:
        return self._chance.uniform(0.0, width)

    def _hidden(self, path: Path) -> Path:
        return path.with_name(f".{path.name}")

    def _tcf(self, path: Path, volumes: list[np.ndarray], outcome: str, cells: int) -> None:
        self._number += 1
        hidden = self._hidden(path)
        write_tcf(hidden, volumes, voxel_um=VOXEL_UM, title=f"soak-{self._number}")
        self._publish(hidden, path, outcome, cells)

    def _publish(self, hidden: Path, path: Path, outcome: str, cells: int = 0) -> None:
        self._expect(path, outcome, cells, hashlib.blake2b(hidden.read_bytes(), digest_size=20).hexdigest())
        hidden.rename(path)

    def _expect(self, path: Path, outcome: str, cells: int, content_id: str | None) -> None:
        """Before the file is there: the truth must never be behind the daemon."""
        self._now_at(path, content_id or str(path))
        truth = Truth(self._kind, outcome, cells, content_id, str(path))
        self.truth[content_id or str(path)] = truth
        self._file.write(json.dumps(asdict(truth)) + "\n")
        self._file.flush()

    def _now_at(self, path: Path, key: str) -> None:
        self.holds[str(path)] = key

    def _tell(self, what: str) -> None:
        self.written[what] = self.written.get(what, 0) + 1

    def close(self) -> None:
        self._file.close()
