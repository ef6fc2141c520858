"""From a ticket to arrays: recognise the format, validate it, hand over the payload."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from wbcd.acquisition import tiffpair
from wbcd.acquisition.candidate import demand_unchanged, holds_holograms, is_zip_of_zarr
from wbcd.acquisition.hdf5 import Node, hdf5_of
from wbcd.acquisition.holograms import looks_like_holograms, read_holograms
from wbcd.acquisition.limits import PROVENANCE, SCALE, VALUES, ReadDefaults
from wbcd.acquisition.matfile import MAT_SUFFIX, looks_like_mat, no_session, opened_mat, read_mat
from wbcd.acquisition.omezarr import demand_unchanged_folder, read_zarr_header, zarr_volumes
from wbcd.acquisition.ritiff import RiTiffHeader, read_ri_tiff_header, ri_tiff_volumes
from wbcd.acquisition.source import Held, Source
from wbcd.acquisition.tcf import TcfHeader, looks_like_tcf, read_tcf_header, tcf_volumes
from wbcd.errors import Incomplete, UnknownFormat
from wbcd.recipe import ALGORITHMS
from wbcd.records import Acquisition, HologramStack, Payload, RiSeries, Tomogram

ALGORITHM_VERSION = ALGORITHMS["reading"]
"""Of the formats, where they scale and place values (this room). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

DEFAULTS = ReadDefaults()


def read(
    acquisition: Acquisition, *, defaults: ReadDefaults = DEFAULTS, root: Path | None = None, held: Held | None = None
) -> tuple[Acquisition, Payload]:
    """Validate the identified file to its semantic end; returns the completed ticket and the payload.

    A stack of holograms is whole in memory. A series of RI volumes loads one at a time while it is iterated; its headers are
    all validated here, its voxels when they are loaded, so that iterating raises the same errors.
    ``root``: the folder below which no component of the path may be a link (default: the path's parent). ``held``:
    descriptors to read from in place of the path. Raises the InputError family; Incomplete (the writer is not done, or the
    file changed since it was identified) is worth another try later.
    """
    source = Source(acquisition, root, held)
    if source.is_folder or is_zip_of_zarr(source.path.name):
        return _read_zarr(source, defaults)
    if source.path.suffix.lower() in tiffpair.SUFFIXES and not holds_holograms(source.path.name):
        ticket, header = read_ri_tiff_header(source, defaults)
        _demand_still(source)
        return ticket, RiSeries(header.time_points, _ri_tiff_series(source, header))
    if source.path.suffix.lower() in tiffpair.SUFFIXES:
        return _read_still(source, tiffpair.read_tiff_pair(source, defaults))
    if source.path.suffix.lower() == MAT_SUFFIX:
        return _read_matlab(source, defaults)
    return _read_hdf5(source, defaults)


def _read_matlab(source: Source, defaults: ReadDefaults) -> tuple[Acquisition, Payload]:
    with source.opened() as handle, opened_mat(handle, source.path, defaults) as root:
        state = os.fstat(handle)
        demand_unchanged(source.acquisition, state.st_size, state.st_mtime_ns)
        if not looks_like_mat(root):
            raise no_session(root)
        return _read_still(source, read_mat(root, source, defaults))


def _read_still(source: Source, found: tuple[Acquisition, HologramStack]) -> tuple[Acquisition, Payload]:
    """A rig's stack: neither its notes nor TIFF have checksums, nor have the frames of MATLAB's files that are not packed."""
    _demand_still(source)
    ticket, stack = found
    return replace(ticket, unprotected=(SCALE, VALUES, PROVENANCE)), stack


def _read_zarr(source: Source, defaults: ReadDefaults) -> tuple[Acquisition, Payload]:
    ticket, header = read_zarr_header(source, defaults)

    def volumes() -> Iterator[Tomogram]:
        for tomogram in zarr_volumes(source, header):
            demand_unchanged_folder(source)
            yield tomogram
            del tomogram  # else two volumes are held while the next is loaded

    return ticket, RiSeries(header.time_points, volumes())


def _ri_tiff_series(source: Source, header: RiTiffHeader) -> Iterator[Tomogram]:
    for tomogram in ri_tiff_volumes(source, header):
        _demand_still(source)
        yield tomogram
        del tomogram  # else two volumes are held while the next is loaded


def _read_hdf5(source: Source, defaults: ReadDefaults) -> tuple[Acquisition, Payload]:
    acquisition = source.acquisition
    with ExitStack() as stack:
        root = _open(stack, source, defaults)
        if looks_like_holograms(root):
            ticket, holograms = read_holograms(root, source, defaults)
            _demand_still(source)
            return ticket, holograms
        if looks_like_mat(root):
            return _read_still(source, read_mat(root, source, defaults))
        if looks_like_tcf(root) or acquisition.path.suffix.lower() == ".tcf":
            ticket, header = read_tcf_header(root, source, defaults)
            return ticket, RiSeries(len(header.names), _tcf_series(source, header, defaults))
        if not root.names() and not len(root.group.attrs):
            raise Incomplete(f"{acquisition.path} is an HDF5 file without content.")
        raise UnknownFormat(
            f"{acquisition.path} is an HDF5 file, but neither a wbcd acquisition, nor a TCF, nor a `tomogMap` stack."
        )


def _open(stack: ExitStack, source: Source, defaults: ReadDefaults) -> Node:
    handle = stack.enter_context(source.opened())
    file, state = stack.enter_context(hdf5_of(handle, source.path))
    demand_unchanged(source.acquisition, state.st_size, state.st_mtime_ns)
    return Node(file, source.path, defaults.max_logical_bytes)


def _demand_still(source: Source) -> None:
    state = source.stat()
    demand_unchanged(source.acquisition, state.st_size, state.st_mtime_ns)


def _tcf_series(source: Source, header: TcfHeader, defaults: ReadDefaults) -> Iterator[Tomogram]:
    """Opens the file anew, so that a series nobody iterates holds no descriptor."""
    with ExitStack() as stack:
        root = _open(stack, source, defaults)
        for tomogram in tcf_volumes(root, header):
            _demand_still(source)
            yield tomogram
            del tomogram  # else two volumes are held while the next is loaded
