"""What comes in: the watch folder, the identity of each file, and a reader for each format."""

from __future__ import annotations

from wbcd.acquisition.candidate import FileStat, identify, is_candidate, stat_candidate
from wbcd.acquisition.isolate import IsolatedReader, IsolationLimits
from wbcd.acquisition.limits import ReadDefaults
from wbcd.acquisition.reading import read
from wbcd.acquisition.settle import StabilityTracker
from wbcd.acquisition.watch import FolderWatcher

__all__ = [
    "FileStat",
    "FolderWatcher",
    "IsolatedReader",
    "IsolationLimits",
    "ReadDefaults",
    "StabilityTracker",
    "identify",
    "is_candidate",
    "read",
    "stat_candidate",
]
