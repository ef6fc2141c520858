"""Retention of kept tomograms by age and by total size: files go, rows stay.

Only what a row names is removed, only under the output folder, and no link is followed. The journal is told first (an event of
kind ``retention`` with the names), so that `wbcd verify` knows what is absent on purpose even when a crash cuts the removal
short; the next one goes on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wbcd.store.ledger import Ledger
from wbcd.store.verification import RETENTION, key_of, tomogram_rows
from wbcd.store.volumes import images_under, remove_image

NAMES_PER_EVENT: Final = 200
"""One event names so many images at most: a row of the journal stays a few tens of kB."""


@dataclass(frozen=True, slots=True)
class KeptImage:
    """A tomogram on the disk: its size in bytes, and when it was written (wall time, s since 1970)."""

    path: Path
    size_bytes: int
    written_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a retention would do. ``removed`` oldest first; ``unnamed``: images that no row names, which are left alone."""

    removed: tuple[KeptImage, ...]
    kept: int
    kept_bytes: int
    unnamed: int

    @property
    def removed_bytes(self) -> int:
        """Bytes that the removal frees."""
        return sum(image.size_bytes for image in self.removed)


def choose(
    images: Iterable[KeptImage], *, now_s: float, max_age_s: float | None, max_bytes: int | None
) -> tuple[list[KeptImage], list[KeptImage]]:
    """Which go and which stay, both oldest first: older than ``max_age_s``, then the oldest until ``max_bytes`` holds all."""
    ordered = sorted(images, key=lambda image: (image.written_s, str(image.path)))
    limit_s = -float("inf") if max_age_s is None else now_s - max_age_s
    gone = [image for image in ordered if image.written_s < limit_s]
    stay = ordered[len(gone) :]
    total = sum(image.size_bytes for image in stay)
    while max_bytes is not None and stay and total > max_bytes:
        total -= stay[0].size_bytes
        gone.append(stay.pop(0))
    return gone, stay


def plan(ledger: Ledger, root: Path, *, now_s: float, max_age_s: float | None = None, max_bytes: int | None = None) -> Plan:
    """Look at every kept image under ``root``; nothing is changed."""
    named = {key_of(Path(stated)) for _, stated in tomogram_rows(ledger)}
    images = [_measured(path) for path in images_under(root)]
    ours = [image for image in images if key_of(image.path) in named]
    gone, stay = choose(ours, now_s=now_s, max_age_s=max_age_s, max_bytes=max_bytes)
    return Plan(tuple(gone), len(stay), sum(image.size_bytes for image in stay), len(images) - len(ours))


def apply(ledger: Ledger, root: Path, removal: Plan, *, why: str) -> Iterator[KeptImage]:
    """Remove what the plan says and yield each image when it is gone.

    What has become a link or has left the folder since the plan was made is passed over. Raises
    :class:`wbcd.errors.StoreError` at the first image that stays.
    """
    for batch in _batches(removal.removed):
        names = [key_of(image.path) for image in batch]
        message = f"{len(names)} tomograms were removed from {root}: {why}."
        ledger.event(RETENTION, message, removed=names, bytes=sum(image.size_bytes for image in batch))
        for image in batch:
            if _is_ours(root, image.path):
                remove_image(image.path)
                yield image


def _batches(images: tuple[KeptImage, ...]) -> Iterator[tuple[KeptImage, ...]]:
    yield from (images[start : start + NAMES_PER_EVENT] for start in range(0, len(images), NAMES_PER_EVENT))


def _measured(image: Path) -> KeptImage:
    total = 0
    for folder, _, names in os.walk(image):  # links to folders are not entered, those to files are counted as links
        total += sum((Path(folder) / name).lstat().st_size for name in names)
    return KeptImage(image, total, image.lstat().st_mtime)


def _is_ours(root: Path, image: Path) -> bool:
    """A real folder, two real folders below the root, by what lies there now."""
    if image.parent.parent != root:
        return False
    try:
        return all(stat.S_ISDIR(folder.lstat().st_mode) for folder in (image.parent, image))
    except FileNotFoundError:
        return False
