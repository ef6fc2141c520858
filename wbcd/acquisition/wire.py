"""The language between the daemon and its isolated reader: one JSON object a packet, arrays as sealed memory files.

No pickle. The parent believes nothing: types, sizes and seals of what comes are checked, so that a reader taken over by a
hostile file can at worst send wrong numbers for that file.
"""

from __future__ import annotations

import array
import dataclasses
import fcntl
import json
import math
import mmap
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd import errors
from wbcd.acquisition.limits import ReadDefaults
from wbcd.errors import InputError, MissingCompanion, ReaderDied
from wbcd.records import Acquisition, HologramStack, Optics, SourceFormat, Tomogram

MAX_PACKET = 64 * 1024
MAX_ARRAYS = 4
MAX_TEXT = 4000
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_DTYPES = frozenset({"uint8", "uint16", "float32", "float64", "bool"})

Message = dict[str, Any]
Arrays = Mapping[str, NDArray[Any]]


# --- packets -------------------------------------------------------------------------------------


def send(channel: socket.socket, message: Message, arrays: Arrays | None = None) -> None:
    """Send one packet; each array goes along as the descriptor of a sealed memory file."""
    held: list[int] = []
    try:
        heads = []
        for name, values in (arrays or {}).items():
            held.append(_memory_file(values))
            heads.append({"name": name, "dtype": str(values.dtype), "shape": list(values.shape)})
        packet = json.dumps({**message, "arrays": heads}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", held))] if held else []
        channel.sendmsg([packet], rights)
    finally:
        for handle in held:
            os.close(handle)


def _memory_file(values: NDArray[Any]) -> int:
    handle = os.memfd_create("wbcd-array", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    written = 0
    while written < len(view):
        written += os.write(handle, view[written : written + (1 << 28)])
    # Sealed, so that the receiver's mapping can neither be cut off under it (SIGBUS) nor change after it was judged.
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, _SEALS)
    return handle


def send_request(channel: socket.socket, message: Message, handles: Sequence[int] = ()) -> None:
    """Send one packet to the reader, with open descriptors for it to read from."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))] if handles else []
    channel.sendmsg([json.dumps(message).encode()], rights)


def receive_request(channel: socket.socket) -> tuple[Message, tuple[int, ...]] | None:
    """The reader's side of :func:`send_request`: the next packet and its descriptors, or None when the daemon has closed."""
    packet, handles, _, _ = socket.recv_fds(channel, MAX_PACKET, MAX_ARRAYS, socket.MSG_CMSG_CLOEXEC)
    return (json.loads(packet), tuple(handles)) if packet else None


def receive(channel: socket.socket) -> tuple[Message, dict[str, NDArray[Any]]] | None:
    """The next packet and its arrays (writable, private to this process), or None when the other side has closed.

    Raises ReaderDied for anything that is no proper packet; TimeoutError by the channel's own time limit.
    """
    packet, handles, flags, _ = socket.recv_fds(channel, MAX_PACKET, MAX_ARRAYS, socket.MSG_CMSG_CLOEXEC)
    try:
        if not packet:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ReaderDied("The isolated reader sent a packet over the limit.")
        message = json.loads(packet)
        heads = message.pop("arrays")
        if len(heads) != len(handles):
            raise ReaderDied(f"The isolated reader announced {len(heads)} arrays and sent {len(handles)}.")
        return message, {str(head["name"]): _mapped(head, handle) for head, handle in zip(heads, handles, strict=True)}
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ReaderDied(f"The isolated reader sent nonsense: {error}.") from error
    finally:
        for handle in handles:
            os.close(handle)


def _mapped(head: Mapping[str, Any], handle: int) -> NDArray[Any]:
    shape = tuple(int(size) for size in head["shape"])
    if head["dtype"] not in _DTYPES or min(shape, default=0) < 0:
        raise ValueError(f"array of type {head['dtype']!r} and shape {shape}")
    dtype = np.dtype(head["dtype"])
    size = math.prod(shape) * dtype.itemsize
    if fcntl.fcntl(handle, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(handle).st_size != size:
        raise ValueError(f"memory file of {os.fstat(handle).st_size} bytes for an array of {size}, or unsealed")
    if size == 0:
        return np.empty(shape, dtype)
    # Copy on write: the same pages, yet an ordinary writable array.
    return np.frombuffer(mmap.mmap(handle, size, access=mmap.ACCESS_COPY), dtype).reshape(shape)


# --- records -------------------------------------------------------------------------------------


def pack_acquisition(acquisition: Acquisition) -> Message:
    """The ticket as JSON."""
    return {**dataclasses.asdict(acquisition), "path": os.fsdecode(acquisition.path)}


def unpack_acquisition(data: Message) -> Acquisition:
    """Inverse of :func:`pack_acquisition`."""
    kind = data["format"]
    changed = {
        "path": Path(data["path"]),
        "format": None if kind is None else SourceFormat(kind),
        "unprotected": tuple(map(str, data["unprotected"])),
        "companions": tuple((_plain_name(name), None) for name, _ in data["companions"] if _plain_name(name)),
    }
    return Acquisition(**{**data, **changed})


def pack_defaults(defaults: ReadDefaults) -> Message:
    """The defaults as JSON."""
    return dataclasses.asdict(defaults)


def pack_stack(stack: HologramStack) -> tuple[Message, Arrays]:
    """Head and arrays of a hologram stack."""
    arrays: dict[str, NDArray[Any]] = {"holograms": stack.holograms}
    if stack.reference is not None:
        arrays["reference"] = stack.reference
    if stack.illumination_rad_um is not None:
        arrays["illumination"] = stack.illumination_rad_um
    return {"optics": dataclasses.asdict(stack.optics), "normal_frame": stack.normal_frame}, arrays


def unpack_stack(head: Message, arrays: Arrays) -> HologramStack:
    """Inverse of :func:`pack_stack`."""
    return HologramStack(
        holograms=arrays["holograms"],
        reference=arrays.get("reference"),
        illumination_rad_um=arrays.get("illumination"),
        normal_frame=int(head["normal_frame"]),
        optics=Optics(**{name: float(value) for name, value in head["optics"].items()}),
    )


_TOMOGRAM_FIELDS = ("medium_ri", "time_index", "wavelength_um", "objective_na")


def pack_tomogram(tomogram: Tomogram) -> tuple[Message, Arrays]:
    """Head and arrays of a volume as readers make it (no inversion report)."""
    head: Message = {name: getattr(tomogram, name) for name in _TOMOGRAM_FIELDS}
    head |= {"voxel_um": list(tomogram.voxel_um), "origin_um": list(tomogram.origin_um)}
    arrays: dict[str, NDArray[Any]] = {"ri": tomogram.ri}
    if tomogram.fill is not None:
        arrays["fill"] = tomogram.fill
    return head, arrays


def unpack_tomogram(head: Message, arrays: Arrays) -> Tomogram:
    """Inverse of :func:`pack_tomogram`."""
    return Tomogram(
        ri=arrays["ri"],
        voxel_um=_triple(head["voxel_um"]),
        origin_um=_triple(head["origin_um"]),
        fill=arrays.get("fill"),
        **{name: head[name] for name in _TOMOGRAM_FIELDS},
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x


def pack_error(error: InputError) -> Message:
    """Class, message and advice; long texts are cut so that a packet always fits."""
    packed = {"error": type(error).__name__, "message": error.message[:MAX_TEXT], "advice": error.advice[:MAX_TEXT]}
    return packed | {"companion": error.companion[:255]} if isinstance(error, MissingCompanion) else packed


def unpack_error(data: Message) -> InputError:
    """The error of that class; an unknown class becomes ReaderDied with the same words."""
    kind = getattr(errors, str(data["error"]), None)
    known = kind if isinstance(kind, type) and issubclass(kind, InputError) else ReaderDied
    message, advice = str(data["message"]), str(data.get("advice", ""))
    if known is MissingCompanion:
        return MissingCompanion(message, companion=_plain_name(data.get("companion", "")), action=advice)
    return known(message, action=advice)


def _plain_name(value: object) -> str:
    """A name in the file's own folder; nothing for what would lead out of it."""
    name = str(value)[:255]
    return "" if name in (".", "..") or "/" in name or "\0" in name else name
