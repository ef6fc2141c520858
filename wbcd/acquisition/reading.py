"""From a ticket to arrays: recognise the format, validate it, hand over the payload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from wbcd.acquisition.candidate import FOLDER_SUFFIX, demand_unchanged
from wbcd.acquisition.hdf5 import Node, open_hdf5
from wbcd.acquisition.holograms import looks_like_holograms, read_holograms
from wbcd.acquisition.limits import ReadDefaults
from wbcd.acquisition.omezarr import demand_unchanged_folder, read_zarr_header, zarr_volumes
from wbcd.acquisition.tcf import TcfHeader, looks_like_tcf, read_tcf_header, tcf_volumes
from wbcd.errors import Incomplete, UnknownFormat
from wbcd.records import Acquisition, Payload, RiSeries, Tomogram

DEFAULTS = ReadDefaults()


def read(acquisition: Acquisition, *, defaults: ReadDefaults = DEFAULTS) -> tuple[Acquisition, Payload]:
    """Validate the identified file to its semantic end; returns the completed ticket and the payload.

    A stack of holograms is whole in memory. A series of RI volumes loads one at a time while it is iterated; its headers are
    all validated here, its voxels when they are loaded, so that iterating raises the same errors.
    Raises the InputError family; Incomplete (the writer is not done, or the file changed since it was identified) is worth
    another try later.
    """
    if acquisition.path.suffix.lower() == FOLDER_SUFFIX:
        return _read_zarr(acquisition, defaults)
    return _read_hdf5(acquisition, defaults)


def _read_zarr(acquisition: Acquisition, defaults: ReadDefaults) -> tuple[Acquisition, Payload]:
    ticket, header = read_zarr_header(acquisition, defaults)

    def volumes() -> Iterator[Tomogram]:
        for tomogram in zarr_volumes(acquisition.path, header):
            demand_unchanged_folder(acquisition)
            yield tomogram
            del tomogram  # else two volumes are held while the next is loaded

    return ticket, RiSeries(header.time_points, volumes())


def _read_hdf5(acquisition: Acquisition, defaults: ReadDefaults) -> tuple[Acquisition, Payload]:
    with ExitStack() as stack:
        root = _open(stack, acquisition, defaults)
        if looks_like_holograms(root):
            ticket, holograms = read_holograms(root, acquisition, defaults)
            _demand_still(acquisition)
            return ticket, holograms
        if looks_like_tcf(root) or acquisition.path.suffix.lower() == ".tcf":
            ticket, header = read_tcf_header(root, acquisition, defaults)
            return ticket, RiSeries(len(header.names), _tcf_series(acquisition, header, defaults))
        if not root.names() and not len(root.group.attrs):
            raise Incomplete(f"{acquisition.path} is an HDF5 file without content.")
        raise UnknownFormat(f"{acquisition.path} is an HDF5 file, but neither a wbcd acquisition nor a TCF.")


def _open(stack: ExitStack, acquisition: Acquisition, defaults: ReadDefaults) -> Node:
    file, state = stack.enter_context(open_hdf5(acquisition.path))
    demand_unchanged(acquisition, state.st_size, state.st_mtime_ns)
    return Node(file, acquisition.path, defaults.max_logical_bytes)


def _demand_still(acquisition: Acquisition) -> None:
    try:
        state = acquisition.path.lstat()
    except OSError as error:
        raise Incomplete(f"{acquisition.path} vanished while it was read: {error.strerror}.") from error
    demand_unchanged(acquisition, state.st_size, state.st_mtime_ns)


def _tcf_series(acquisition: Acquisition, header: TcfHeader, defaults: ReadDefaults) -> Iterator[Tomogram]:
    """Opens the file anew, so that a series nobody iterates holds no descriptor."""
    with ExitStack() as stack:
        root = _open(stack, acquisition, defaults)
        for tomogram in tcf_volumes(root, header):
            _demand_still(acquisition)
            yield tomogram
            del tomogram  # else two volumes are held while the next is loaded
