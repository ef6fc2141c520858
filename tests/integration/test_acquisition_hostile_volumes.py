"""TIFF volumes and packed OME-Zarr made to do harm, through the isolated reader: refused, quickly, in bounded memory, nothing
outside read, the same reader alive for the next file."""

from __future__ import annotations

import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers_acquisition import ri_volume
from helpers_ri import VOXEL_UM, described_tiff, imagej_tiff, ome_tiff, ome_xml, packed, pixels_xml, x10000, zarr_image

from wbcd.acquisition import IsolatedReader, identify
from wbcd.errors import InputError, ReaderDied
from wbcd.records import RiSeries, Tomogram

RI = ri_volume((6, 40, 44))
MOST_MB, MOST_S = 700, 30.0


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedReader]:
    with IsolatedReader(root=tmp_path_factory.getbasetemp()) as shared:
        yield shared


def volumes(reader: IsolatedReader, path: Path) -> list[Tomogram]:
    _, payload = reader.read(identify(path))
    assert isinstance(payload, RiSeries)
    return list(payload)


def refused(reader: IsolatedReader, path: Path) -> str:
    """Its sentence; the reader has lived on, has not grown, and reads a good file afterwards."""
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        volumes(reader, path)
    assert time.monotonic() - begin < MOST_S
    assert not isinstance(caught.value, ReaderDied), caught.value
    status = Path(f"/proc/{reader._child.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < MOST_MB * 1024
    return caught.value.sentence()


def set_tag(path: Path, name: str, *, count: int | None = None, value: int | None = None, page: int = 0) -> Path:
    """Write other numbers into a tag's entry (little-endian, classic)."""
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at = file.pages[page].tags[name].offset
    if count is not None:
        raw[at + 4 : at + 8] = struct.pack("<I", count)
    if value is not None:
        raw[at + 8 : at + 12] = struct.pack("<I", value)
    path.write_bytes(raw)
    return path


def deflate_bomb(path: Path) -> Path:
    ome_tiff(path, x10000(RI), compression="zlib")
    at = path.stat().st_size
    packed_bomb = zlib.compress(bytes(2**28), 9)
    with path.open("ab") as file:
        file.write(packed_bomb)
    set_tag(path, "StripOffsets", value=at)
    set_tag(path, "StripByteCounts", value=len(packed_bomb))
    return set_tag(path, "ImageLength", value=2**31)


def loop(path: Path) -> Path:
    """The last directory leads back to the first."""
    imagej_tiff(path, x10000(RI))
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[-1].offset
    entries = struct.unpack_from("<H", raw, last)[0]
    raw[last + 2 + 12 * entries : last + 6 + 12 * entries] = struct.pack("<I", first)
    path.write_bytes(raw)
    return path


def endless_chain(path: Path) -> Path:
    """70,000 directories of one page each that share their pixels: 13 MB."""
    header = struct.pack("<2sHI", b"II", 42, 8 + 40 * 44 * 2)
    entries = [
        (256, 4, 44),
        (257, 4, 40),
        (258, 3, 16),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 40),
        (279, 4, 40 * 44 * 2),
    ]
    size = 2 + 12 * len(entries) + 4
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<2H2I", tag, kind, 1, value) for tag, kind, value in entries)
    places = (8 + 40 * 44 * 2 + size * (index + 1) for index in range(70_000))
    path.write_bytes(header + x10000(RI)[0].tobytes() + b"".join(body + struct.pack("<I", at) for at in places))
    return path


LAUGHS = (
    "<!DOCTYPE x [" + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(12)) + "]><OME>&a11;</OME>"
)
PASSWD = '<TiffData IFD="0" PlaneCount="6"><UUID FileName="/etc/passwd">urn:uuid:9</UUID></TiffData>'
ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><OME>&e;</OME>'

TIFFS: dict[str, Callable[[Path], Any]] = {
    "deflate bomb": deflate_bomb,
    "wide": lambda p: set_tag(imagej_tiff(p, x10000(RI)), "ImageWidth", value=2**31),
    "strips": lambda p: set_tag(imagej_tiff(p, x10000(RI)), "StripOffsets", count=2**32 - 1),
    "description": lambda p: set_tag(imagej_tiff(p, x10000(RI)), "ImageDescription", count=2**31),
    "offset": lambda p: set_tag(imagej_tiff(p, x10000(RI)), "StripOffsets", value=2**32 - 2),
    "counts": lambda p: set_tag(imagej_tiff(p, x10000(RI)), "StripByteCounts", value=2**32 - 1),
    "loop": loop,
    "endless chain": endless_chain,
    "laughs": lambda p: described_tiff(p, x10000(RI), LAUGHS),
    "entity": lambda p: described_tiff(p, x10000(RI), ENTITY),
    "other file": lambda p: described_tiff(p, x10000(RI), ome_xml(pixels_xml(RI.shape, PASSWD), root=' UUID="urn:uuid:1"')),
    "deep": lambda p: described_tiff(p, x10000(RI), "<OME>" + "<a>" * 10**6),
    "long": lambda p: described_tiff(p, x10000(RI), "<OME>" + "x" * (5 * 2**20) + "</OME>"),
    "planes": lambda p: described_tiff(p, x10000(RI), ome_xml(pixels_xml((65_536, 40, 44), SizeT=65_536))),
    "frames": lambda p: described_tiff(p, x10000(RI)[:1], "ImageJ=1\nimages=65536\nslices=65536\nspacing=1\nunit=um\n"),
}


@pytest.mark.parametrize("name", sorted(TIFFS))
def test_hostile_tiff(tmp_path, reader, name):
    path = tmp_path / "a.tif"
    TIFFS[name](path)
    assert "root:" not in refused(reader, path)
    (tomogram,) = volumes(reader, imagej_tiff(tmp_path / "good.tif", x10000(RI)))
    np.testing.assert_allclose(tomogram.ri, RI, atol=1e-6)


def test_no_file(tmp_path, reader):
    os.mkfifo(tmp_path / "a.tif")
    (tmp_path / "b.tif").symlink_to("/etc/passwd")
    (tmp_path / "c.ozx").symlink_to("/etc/passwd")
    for name in ("a.tif", "b.tif", "c.ozx"):
        with pytest.raises(InputError, match=name):
            identify(tmp_path / name)


def many_members(path: Path) -> Path:
    """A directory of 300,000 entries, as few bytes each as there can be."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count, begin = 300_000, 31
    directory = entry * count
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), begin)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, begin + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    path.write_bytes(local + directory + record + locator + end)
    return path


def zip_bomb(wanted: str) -> Callable[[Path], Any]:
    def make(path: Path) -> Path:
        folder = zarr_image(path.parent / "made" / "a.zarr", RI)
        data = bytes(2**28)
        return packed(folder, path, method=zipfile.ZIP_DEFLATED, change=lambda n, d: (n, data if n == wanted else d))

    return make


ZIPS: dict[str, Callable[[Path], Any]] = {
    "many members": many_members,
    "bomb of a chunk": zip_bomb("0/c/0/0/0"),
    "bomb of metadata": zip_bomb("zarr.json"),
    "nothing": lambda p: p.write_bytes(b"PK\5\6" + bytes(18)),
    "noise": lambda p: p.write_bytes(b"PK\3\4" + np.random.default_rng(0).bytes(2**20)),
}


@pytest.mark.parametrize("name", sorted(ZIPS))
def test_hostile_zip(tmp_path, reader, name):
    path = tmp_path / "a.ozx"
    ZIPS[name](path)
    refused(reader, path)
    (tomogram,) = volumes(reader, packed(zarr_image(tmp_path / "good" / "a.zarr", RI), tmp_path / "good.ozx"))
    np.testing.assert_array_equal(tomogram.ri, RI)
    assert tomogram.voxel_um == VOXEL_UM
