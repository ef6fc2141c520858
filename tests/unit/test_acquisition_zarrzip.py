"""OME-Zarr packed into one file: the same values and the same refusals as the folder, and nothing that a zip file can hide."""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers_acquisition import load, ri_volume
from helpers_ri import MEDIUM, VOXEL_UM, bioformats2raw, cell_volume, leaving_out, multiscales, packed, zarr_image

from wbcd.acquisition import identify, is_candidate, members, read
from wbcd.acquisition.members import MAX_ZIP_MEMBERS
from wbcd.errors import CorruptContent, Forbidden, Incomplete, InputError, NotARegularFile, TooLarge, UnknownFormat
from wbcd.records import SourceFormat

RI = ri_volume((20, 60, 64))
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return zarr_image(tmp_path / "made" / "a.zarr", RI, chunks=(10, 30, 32))


def refused(path: Path, kind: type[InputError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        load(path)
    assert path.name in caught.value.message


@pytest.mark.parametrize("name", ["a.zarr.zip", "b.ome.zarr.zip", "c.ZARR.ZIP", "d.ozx", "E.OZX"])
def test_names(name):
    assert is_candidate(Path("f") / name)


@pytest.mark.parametrize("name", ["a.zip", "zarr.zip.txt", ".a.ozx", "a.ozx.part", "a.zarr.zip.tmp", "zip"])
def test_other_names(name):
    assert not is_candidate(Path("f") / name)


# --- read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top", ["", "a.zarr/"])
@pytest.mark.parametrize("name", ["a.zarr.zip", "a.ozx"])
def test_values_and_ticket(tmp_path, folder, method, top, name):
    path = packed(folder, tmp_path / name, top=top, method=method)
    ticket, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.ri, RI)
    assert tomogram.voxel_um == VOXEL_UM
    assert ticket.format is SourceFormat.OME_ZARR
    assert ticket.unprotected == ("seal",), "every member of a zip file has a checksum"
    assert ticket.size_bytes == path.stat().st_size


@pytest.mark.parametrize("method", METHODS)
def test_shards_are_read_in_parts(tmp_path, method):
    folder = zarr_image(tmp_path / "a.zarr", RI, chunks=(5, 15, 16), shards=(10, 60, 64))
    _, (tomogram,) = load(packed(folder, tmp_path / "a.zarr.zip", method=method))
    np.testing.assert_array_equal(tomogram.ri, RI)


def test_a_comment_as_rfc_9_wants_it(tmp_path, folder):
    said = json.dumps({"ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}}).encode()
    for comment in (said, b"x" * 65_535, b"PK\5\6 is how a directory ends" + bytes(40)):
        _, (tomogram,) = load(packed(folder, tmp_path / "a.ozx", comment=comment))
        np.testing.assert_array_equal(tomogram.ri, RI)


def test_a_comment_that_looks_like_a_directory(tmp_path, folder):
    refused(packed(folder, tmp_path / "a.ozx", comment=b"PK\5\6" + bytes(18)), CorruptContent, "its directory ends at byte 0")


def test_zip64(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = packed(folder, tmp_path / "a.ozx")
    assert b"PK\6\6" in path.read_bytes()
    _, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.ri, RI)


def test_what_macos_leaves_beside_is_passed_over(tmp_path, folder):
    more = (("__MACOSX/a.zarr/._zarr.json", b"junk"), ("a.zarr/.DS_Store", b"junk"))
    _, (tomogram,) = load(packed(folder, tmp_path / "a.zarr.zip", top="a.zarr/", more=more))
    np.testing.assert_array_equal(tomogram.ri, RI)


def test_a_writer_that_streams(tmp_path, folder):
    """Sizes behind the data, as `zip -` and Java write them."""

    class OneWay:
        def __init__(self, file):
            self.file = file
            self.write, self.flush = file.write, file.flush

    with (tmp_path / "a.ozx").open("wb") as target, zipfile.ZipFile(OneWay(target), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    _, (tomogram,) = load(tmp_path / "a.ozx")
    np.testing.assert_array_equal(tomogram.ri, RI)


def test_zarr_2_layouts_and_gaps(tmp_path):
    images = bioformats2raw(tmp_path / "b.zarr", [RI])
    _, (tomogram,) = load(packed(images, tmp_path / "b.zarr.zip"))
    np.testing.assert_array_equal(tomogram.ri, RI)
    fill = float(np.float32(MEDIUM))
    sparse = zarr_image(tmp_path / "c.zarr", cell_volume(), chunks=(12, 28, 30), **leaving_out(fill))
    _, (tomogram,) = load(packed(sparse, tmp_path / "c.ozx"))
    np.testing.assert_array_equal(tomogram.ri, cell_volume())
    noisy = cell_volume() + np.random.default_rng(0).normal(0, 2e-4, cell_volume().shape).astype(np.float32)
    broken = zarr_image(tmp_path / "d.zarr", noisy, chunks=(12, 28, 30), fill_value=fill)
    left_out = packed(broken, tmp_path / "d.ozx", change=lambda n, d: None if n == "0/c/2/1/1" else (n, d))
    refused(left_out, Incomplete, "chunks are absent that cannot be the fill value")


# --- refused ---------------------------------------------------------------------------------------


def test_a_writer_that_is_not_done_has_no_directory_yet(tmp_path, folder):
    path = packed(folder, tmp_path / "a.ozx")
    whole = path.read_bytes()
    for keep in (4, 100, len(whole) // 2, len(whole) - 1, whole.index(b"PK\1\2") + 10):
        path.write_bytes(whole[:keep])
        refused(path, Incomplete, "no directory of its members")
    for start in (b"", bytes(500)):
        path.write_bytes(start)
        refused(path, Incomplete, "nothing was written yet")


def test_another_file_under_such_a_name(tmp_path):
    (tmp_path / "a.ozx").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    refused(tmp_path / "a.ozx", UnknownFormat, "does not begin as a zip file")
    (tmp_path / "b.ozx").mkdir()
    with pytest.raises(NotARegularFile):
        load(tmp_path / "b.ozx")
    with zipfile.ZipFile(tmp_path / "c.ozx", "w"):
        pass
    refused(tmp_path / "c.ozx", Incomplete, "is empty")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:/x", "a\\..\\x", "./x", "a//b"])
def test_names_that_lead_outside(tmp_path, folder, name):
    path = packed(
        folder, tmp_path / "a.ozx", more=(("QQQQ" + "x" * (len(name) - 4) if len(name) > 4 else "Q" * len(name), b"1"),)
    )
    stand_in = ("QQQQ" + "x" * (len(name) - 4) if len(name) > 4 else "Q" * len(name)).encode()
    path.write_bytes(path.read_bytes().replace(stand_in, name.encode()))
    refused(path, Forbidden, "lies outside its folder")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice(tmp_path, folder):
    refused(packed(folder, tmp_path / "a.ozx", more=(("0/c/0/0/0", b"x"),)), Forbidden, "holds '0/c/0/0/0' twice")


def test_links(tmp_path, folder):
    link = zipfile.ZipInfo("0/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(packed(folder, tmp_path / "a.ozx", more=((link, b"/etc/passwd"),)), Forbidden, "symbolic link")


def test_encryption(tmp_path, folder):
    path = packed(folder, tmp_path / "a.ozx")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    refused(path, Forbidden, "encrypted")


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")])
def test_other_methods_are_named(tmp_path, folder, method, name):
    refused(packed(folder, tmp_path / "a.ozx", method=method), Forbidden, rf"\({name}\); allowed are stored and deflate")


def test_a_deflate_bomb_is_not_unpacked(tmp_path, folder):
    """256 MiB from 256 kB, in the place of a chunk, of the metadata, and of a member that nobody asked for."""
    bomb = bytes(2**28)

    def swap(wanted: str) -> Callable[[str, bytes], tuple[str, bytes]]:
        return lambda name, data: (name, bomb if name == wanted else data)

    for wanted in ("0/c/1/1/1", "zarr.json", "0/zarr.json"):
        path = packed(folder, tmp_path / "a.ozx", method=zipfile.ZIP_DEFLATED, change=swap(wanted))
        refused(path, TooLarge, f"{wanted} holds 268435456 bytes")
    path = packed(folder, tmp_path / "a.ozx", method=zipfile.ZIP_DEFLATED, more=(("extra", bomb),))
    _, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.ri, RI)


def test_a_bomb_that_lies_about_its_size(tmp_path, folder):
    """The directory and the header say 1,000 bytes; the stream holds 64 MiB."""
    path = packed(
        folder,
        tmp_path / "a.ozx",
        method=zipfile.ZIP_DEFLATED,
        change=lambda name, data: (name, bytes(2**26) if name == "0/c/1/1/1" else data),
    )
    raw = path.read_bytes().replace(struct.pack("<I", 2**26), struct.pack("<I", 1000))
    path.write_bytes(raw)
    refused(path, CorruptContent, "unpacks to other than the 1000 bytes|checksum")


def test_overlapping_members(tmp_path, folder):
    """Many names for one packed stream: how a small file becomes a large one."""
    path = packed(folder, tmp_path / "a.ozx")
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\1\2")
    second = raw.index(b"PK\1\2", first + 4)
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    path.write_bytes(raw)
    refused(path, Forbidden, "overlap")


def test_more_members_than_the_limit(tmp_path, folder, monkeypatch):
    assert MAX_ZIP_MEMBERS == 200_000
    monkeypatch.setattr(members, "MAX_ZIP_MEMBERS", 8)
    refused(packed(folder, tmp_path / "a.ozx"), TooLarge, "holds 10 members; the limit is 8")


def test_a_directory_that_declares_what_the_file_does_not_hold(tmp_path, folder):
    path = packed(folder, tmp_path / "a.ozx")
    raw = bytearray(path.read_bytes())
    end = raw.rindex(b"PK\5\6")
    raw[end + 8 : end + 12] = struct.pack("<2H", 60_000, 60_000)
    path.write_bytes(raw)
    refused(path, CorruptContent, "cannot name 60000 members")
    raw[end + 12 : end + 16] = struct.pack("<I", 2**31)
    path.write_bytes(raw)
    refused(path, CorruptContent, "its directory ends")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wanted", ["0/c/1/1/1", "zarr.json"])
def test_a_flipped_bit_is_seen(tmp_path, folder, method, wanted):
    path = packed(folder, tmp_path / "a.ozx", method=method)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(wanted)
    raw = bytearray(path.read_bytes())
    raw[info.header_offset + 30 + len(wanted) + info.compress_size // 2] ^= 4
    path.write_bytes(raw)
    refused(path, CorruptContent, "checksum|does not inflate|unpacks to other")


@pytest.mark.parametrize("sharded", [False, True])
def test_every_damage_is_seen_or_without_effect(tmp_path, sharded):
    """One bit flipped at many places: the values are the same, or the file is refused."""
    options = {"chunks": (5, 15, 16), "shards": (10, 60, 64)} if sharded else {"chunks": (10, 30, 32)}
    small = zarr_image(tmp_path / "a.zarr", RI, **options)
    path = packed(small, tmp_path / "a.ozx")
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    seen = 0
    for at in [*rng.integers(0, len(whole), 60), *rng.integers(len(whole) - 900, len(whole), 120)]:
        raw = bytearray(whole)
        raw[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        try:
            _, (tomogram,) = load(path)
        except InputError:
            seen += 1
        else:
            np.testing.assert_array_equal(tomogram.ri, RI)
            assert tomogram.voxel_um == VOXEL_UM
    assert seen > 60


def test_changed_since_identified_and_links(tmp_path, folder):
    path = packed(folder, tmp_path / "a.ozx")
    ticket = identify(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(Incomplete, match="changed"):
        read(ticket)
    path.rename(tmp_path / "b.bin")
    path.symlink_to(tmp_path / "b.bin")
    with pytest.raises(NotARegularFile):
        load(path)


# --- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [True, False])
def test_one_image_in_the_layout_of_bioformats2raw(tmp_path, version, listed):
    ticket, (tomogram,) = load(bioformats2raw(tmp_path / "a.zarr", [RI], listed=listed, version=version))
    np.testing.assert_array_equal(tomogram.ri, RI)
    assert (tomogram.voxel_um, ticket.time_points) == (VOXEL_UM, 1)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_several_images_are_each_named(tmp_path, version):
    path = bioformats2raw(tmp_path / "a.zarr", [RI, RI, RI], version=version)
    with pytest.raises(
        InputError, match=r"3 images .*: '0' \(image 0\), '1' \(image 1\), '2' \(image 2\); one is read"
    ) as caught:
        load(path)
    assert "a.zarr/0 to NAME.zarr" in caught.value.advice


def test_series_that_leave_the_folder(tmp_path):
    path = bioformats2raw(tmp_path / "a.zarr", [RI])
    (path / "OME" / ".zattrs").write_text('{"series": ["../../outside"]}')
    refused(path, Forbidden, "leaves the folder")


def test_a_layout_without_an_image_and_a_plate(tmp_path):
    path = bioformats2raw(tmp_path / "a.zarr", [])
    refused(path, Incomplete, "no image yet")
    (path / ".zattrs").write_text('{"plate": {"wells": []}}')
    refused(path, UnknownFormat, "is a plate of many images")


@pytest.mark.parametrize("version", ["0.6", "0.6.dev2", "1.0", "0.3", "0.50x"])
def test_other_versions_are_named(tmp_path, version):
    path = zarr_image(tmp_path / "a.zarr", RI, version="0.5")
    text = (path / "zarr.json").read_text().replace('"0.5"', f'"{version}"')
    (path / "zarr.json").write_text(text)
    refused(path, UnknownFormat, f"is OME-Zarr '{version}'; versions 0.4 and 0.5 are read")


@pytest.mark.parametrize(
    ("unit", "per"),
    [
        *(("um", 1), ("µm", 1), ("μm", 1), ("micron", 1), ("Micrometer", 1), (" micrometer ", 1)),
        *(("nanometer", 1e3), ("nm", 1e3), ("meter", 1e-6), ("m", 1e-6), ("angstrom", 1e4), ("Å", 1e4), ("millimeter", 1e-3)),
    ],
)
def test_units(tmp_path, unit, per):
    image = multiscales(unit=unit, scale=tuple(size * per for size in VOXEL_UM))
    _, (tomogram,) = load(zarr_image(tmp_path / "a.zarr", RI, image))
    assert tomogram.voxel_um == pytest.approx(VOXEL_UM)


@pytest.mark.parametrize("unit", ["", " ", None, "parsec", "pixel", "Mm", 7, ["um"]])
def test_units_that_say_nothing(tmp_path, unit):
    path = zarr_image(tmp_path / "a.zarr", RI, multiscales(unit=unit))
    with pytest.raises(InputError, match="axis 'z' has") as caught:
        load(path)
    assert '"unit": "micrometer"' in caught.value.advice


def test_a_pitch_that_nobody_has_set(tmp_path):
    path = zarr_image(tmp_path / "a.zarr", RI, multiscales(scale=(1.0, 1.0, 1.0)))
    with pytest.raises(InputError, match="nobody has set a voxel size"):
        load(path)


def test_axes_in_capitals_and_a_plain_array(tmp_path):
    image = multiscales()
    for axis in image["axes"]:
        axis["name"] = axis["name"].upper()
    load(zarr_image(tmp_path / "a.zarr", RI, image))
    (tmp_path / "a.zarr" / "0").rename(tmp_path / "b.zarr")
    refused(tmp_path / "b.zarr", UnknownFormat, "is a plain Zarr array")
