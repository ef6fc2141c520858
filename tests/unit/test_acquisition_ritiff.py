"""RI volumes as TIFF: what is read rightly, what is refused and by which words, and that nothing else is opened."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers_acquisition import load, ri_volume
from helpers_ri import (
    VOXEL_UM,
    described_tiff,
    imagej_tiff,
    ome_tiff,
    ome_xml,
    pixels_xml,
    retag,
    write_notes,
    x10000,
)

from wbcd.acquisition import ReadDefaults, identify, is_candidate, read
from wbcd.acquisition.tiffmeta import Resolution, described
from wbcd.errors import (
    BadField,
    CorruptContent,
    Forbidden,
    Incomplete,
    MissingField,
    NotARegularFile,
    TooLarge,
    Truncated,
    UnknownFormat,
    WbcdError,
)
from wbcd.records import SourceFormat

RI = ri_volume((6, 40, 44))


def raised(path: Path, kind: type[WbcdError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(path, **options)
    assert path.name in caught.value.message
    assert "Export the acquisition again" not in caught.value.advice, "no advice of its own"
    return caught.value.sentence()


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a.tif", "b.TIFF", "c.ome.tif", "x.TP01_HT3D_0.00.TIFF", "Tomogram_Field_sample001.tif", "d_sp.tif", "_sp.tif", "abg.tif"],
)
def test_tiffs_are_candidates_whatever_they_are_called(name):
    assert is_candidate(Path("f") / name)


@pytest.mark.parametrize(
    "name",
    [
        *("bg.tif", "BG.TIFF", "session_bg.tif", "a_bg.tif", ".a.tif", "a.tif.part", "a.tif.tmp", "a.png"),
        *("x.TP01_FL3D_CH0_0.00.TIFF", "x.TP01_HT2D_0.00.tiff", "x.TP01_FL2D_CH1_0.00.TIFF", "x_BF_0.00.TIFF"),
    ],
)
def test_backgrounds_and_the_vendors_other_exports_are_not(name):
    assert not is_candidate(Path("f") / name)


# --- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_imagej_stack(tmp_path, kind, byteorder):
    data = x10000(RI) if kind is np.uint16 else RI
    ticket, (tomogram,) = load(imagej_tiff(tmp_path / "a.tif", data, byteorder=byteorder))
    np.testing.assert_allclose(tomogram.ri, RI, atol=1e-6)
    assert tomogram.voxel_um == pytest.approx(VOXEL_UM, rel=1e-4)
    assert (ticket.format, ticket.time_points, ticket.acquisition_id) == (SourceFormat.RI_TIFF, 1, "a")
    assert ticket.pixel_size_um == pytest.approx(VOXEL_UM[2], rel=1e-4)
    assert set(ticket.unprotected) == {"scale", "values", "seal"}


@pytest.mark.parametrize(
    ("unit", "factor"), [("um", 1), ("µm", 1), ("micron", 1), ("nm", 1e3), ("mm", 1e-3), ("cm", 1e-4), ("\\u00B5m", 1)]
)
def test_imagej_units(tmp_path, unit, factor):
    z, _, x = VOXEL_UM
    text = f"ImageJ=1.53t\nimages=6\nslices=6\nunit={unit}\nspacing={z * factor:.9g}\nloop=false\n"
    described_tiff(tmp_path / "a.tif", x10000(RI), text, resolution=(1 / x / factor, 1 / x / factor), resolutionunit=1)
    _, (tomogram,) = load(tmp_path / "a.tif")
    assert tomogram.voxel_um == pytest.approx(VOXEL_UM, rel=1e-3)


def test_the_vendors_lateral_pitch_is_in_the_unit_of_the_tag(tmp_path):
    x = VOXEL_UM[2]
    options = {"resolution": (1e4 / x, 1e4 / x), "resolutionunit": 3}
    _, (tomogram,) = load(imagej_tiff(tmp_path / "a_HT3D_0.00.TIFF", x10000(RI), **options))
    assert tomogram.voxel_um == pytest.approx(VOXEL_UM, rel=1e-3)


def test_a_resolution_that_can_be_read_in_two_ways_is_refused():
    text = "ImageJ=1.5\nimages=6\nslices=6\nunit=cm\nspacing=0.00004\n"
    with pytest.raises(BadField, match=r"0\.15 and as 0\.381 um"):
        described(text, Resolution(1e4 / 0.15, 1e4 / 0.15, 2), "a.tif")
    assert described(text, Resolution(1e4 / 0.15, 1e4 / 0.15, 3), "a.tif").pitch_um == pytest.approx((0.4, 0.15, 0.15))


def test_time_points_of_imagej_and_ome(tmp_path):
    series = np.stack([ri_volume((5, 40, 44), seed=seed) for seed in range(3)])
    for path in (imagej_tiff(tmp_path / "a.tif", x10000(series)), ome_tiff(tmp_path / "b.ome.tif", series)):
        ticket, volumes = load(path)
        assert (ticket.time_points, [v.time_index for v in volumes]) == (3, [0, 1, 2])
        for tomogram, truth in zip(volumes, series, strict=True):
            np.testing.assert_allclose(tomogram.ri, truth, atol=1e-6)


@pytest.mark.parametrize("unit", ["µm", "nm", "mm", "Å", "m", None])
def test_ome_units(tmp_path, unit):
    per = {"µm": 1, "nm": 1e3, "mm": 1e-3, "Å": 1e4, "m": 1e-6, None: 1}[unit]
    sizes = {f"PhysicalSize{axis}": size * per for axis, size in zip("ZYX", VOXEL_UM, strict=True)}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
    described_tiff(tmp_path / "a.ome.tif", RI, ome_xml(pixels_xml(RI.shape, **sizes, **units)))
    _, (tomogram,) = load(tmp_path / "a.ome.tif")
    assert tomogram.voxel_um == pytest.approx(VOXEL_UM)
    np.testing.assert_array_equal(tomogram.ri, RI)


@pytest.mark.parametrize("order", ["XYZCT", "XYTCZ"])
def test_pages_go_where_the_ome_xml_says(tmp_path, order):
    series = np.stack([ri_volume((4, 40, 44), seed=seed) for seed in range(2)])
    planes = [(t, z) for t in range(2) for z in range(4)]
    mixed = [planes[n] for n in np.random.default_rng(1).permutation(8)]
    inner = "".join(f'<TiffData IFD="{n}" FirstZ="{z}" FirstT="{t}" PlaneCount="1"/>' for n, (t, z) in enumerate(mixed))
    pages = np.stack([series[t, z] for t, z in mixed])
    described_tiff(tmp_path / "a.tif", pages, ome_xml(pixels_xml(series.shape, inner, DimensionOrder=order)))
    _, volumes = load(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.stack([v.ri for v in volumes]), series)


def test_dimension_order_without_a_block_for_each_page(tmp_path):
    series = np.stack([ri_volume((4, 40, 44), seed=seed) for seed in range(2)])
    pages = series.transpose(1, 0, 2, 3).reshape(8, 40, 44)  # time goes first
    described_tiff(tmp_path / "a.tif", pages, ome_xml(pixels_xml(series.shape, DimensionOrder="XYTZC")))
    _, volumes = load(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.stack([v.ri for v in volumes]), series)


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"tile": (64, 64)}, {"compression": "zlib"}],
    ids=str,
)
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_every_storage_gives_the_same_values(tmp_path, options, kind):
    ome_tiff(tmp_path / "a.ome.tif", x10000(RI) if kind is np.uint16 else RI, **options)
    _, (tomogram,) = load(tmp_path / "a.ome.tif")
    np.testing.assert_allclose(tomogram.ri, RI, atol=1e-6)


def packbits(block: np.ndarray) -> bytes:
    """Apple's run-length code, as runs of literals and one long repeat of nothing."""
    raw = block.tobytes()
    return b"\x80" + b"".join(bytes([len(part) - 1]) + part for part in (raw[at : at + 128] for at in range(0, len(raw), 128)))


def differenced(block: np.ndarray) -> bytes:
    """Horizontal differences in the samples' own type."""
    return zlib.compress(np.diff(block, axis=1, prepend=block.dtype.type(0)).astype(block.dtype).tobytes())


def by_significance(block: np.ndarray) -> bytes:
    """The floating-point predictor: bytes of a row by their significance, then differences."""
    planes = block.astype(">f4").view(np.uint8).reshape(*block.shape, 4).transpose(0, 2, 1).reshape(len(block), -1)
    return zlib.compress(np.diff(planes, axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes())


@pytest.mark.parametrize("tile", [None, (16, 16), (48, 48)])
@pytest.mark.parametrize(
    ("code", "kind", "tags"),
    [
        (packbits, np.uint16, {"Compression": 32773, "Predictor": 1}),
        (packbits, np.float32, {"Compression": 32773, "Predictor": 1}),
        (differenced, np.uint16, {"Compression": 8, "Predictor": 2}),
        (by_significance, np.float32, {"Compression": 8, "Predictor": 3}),
    ],
)
def test_codes_of_segments(tmp_path, code, kind, tags, tile):
    data = x10000(RI) if kind is np.uint16 else RI
    size = tile or data.shape[1:]
    blocks = []
    for plane in data:
        for top in range(0, plane.shape[0], size[0]):
            for left in range(0, plane.shape[1], size[1]):
                block = np.zeros(size, kind)
                part = plane[top : top + size[0], left : left + size[1]]
                block[: part.shape[0], : part.shape[1]] = part
                blocks.append(code(block))
    options: dict[str, Any] = {"tile": tile} if tile else {"rowsperstrip": size[0]}
    text = ome_xml(pixels_xml(RI.shape)).encode()
    made = {"shape": data.shape, "dtype": np.int32 if kind is np.float32 else kind, "description": text, "metadata": None}
    coded = {"compression": "zlib", "predictor": 2, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", iter(blocks), **made, **coded, **options)
    retag(tmp_path / "a.tif", **tags, **({"SampleFormat": 3} if kind is np.float32 else {}))
    _, (tomogram,) = load(tmp_path / "a.tif")
    np.testing.assert_allclose(tomogram.ri, RI, atol=1e-6)


def test_one_directory_for_a_whole_stack(tmp_path):
    """What ImageJ does over 4 GB: the first page alone has a directory, the others follow its pixels."""
    data = x10000(RI)
    text = "ImageJ=1.53t\nimages=6\nslices=6\nunit=um\nspacing=0.4\n"
    described_tiff(tmp_path / "a.tif", data[:1], text, resolution=(1 / 0.16, 1 / 0.16))
    raw = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].dataoffsets[0] + data[0].nbytes == len(raw)
    (tmp_path / "a.tif").write_bytes(raw + data[1:].tobytes())
    _, (tomogram,) = load(tmp_path / "a.tif")
    np.testing.assert_allclose(tomogram.ri, RI, atol=1e-6)
    (tmp_path / "a.tif").write_bytes(raw + data[1:-1].tobytes())
    assert "6 planes end at byte" in raised(tmp_path / "a.tif", Truncated)


# --- notes -----------------------------------------------------------------------------------------


def plain_tiff(path: Path, data: Any = None, **options: Any) -> Path:
    tifffile.imwrite(path, x10000(RI) if data is None else data, **{"metadata": None, "photometric": "minisblack", **options})
    return path


def test_without_a_pitch_the_sentence_names_the_note_and_its_file(tmp_path):
    path = plain_tiff(tmp_path / "Tomogram_Field_sample001.tif")
    words = raised(path, Incomplete)
    assert 'Write {"voxel_um": [z, y, x]} in micrometres' in words
    assert "into Tomogram_Field_sample001.json or session.json in the same folder" in words
    write_notes(tmp_path / "session.json", medium_ri=1.34)
    assert "along z, y, x is not in the file" in raised(path, MissingField)


@pytest.mark.parametrize(("name", "notes"), [("a.tif", "a.json"), ("a.tif", "session.json"), ("a.ome.tif", "a.json")])
def test_notes_give_pitch_medium_and_sample(tmp_path, name, notes):
    path = tmp_path / name
    described_tiff(path, x10000(RI), ome_xml(pixels_xml(RI.shape, PhysicalSizeZ=None)) if ".ome" in name else "")
    write_notes(
        tmp_path / notes, voxel_um=VOXEL_UM, medium_ri=1.341, sample_id="donor 7", wavelength_um=0.532, objective_na=1.2
    )
    ticket, (tomogram,) = load(path)
    assert (tomogram.voxel_um, tomogram.medium_ri, tomogram.objective_na) == (VOXEL_UM, 1.341, 1.2)
    assert (ticket.sample_id, ticket.wavelength_um) == ("donor 7", 0.532)


def test_medium_falls_back_to_the_default(tmp_path):
    _, (tomogram,) = load(imagej_tiff(tmp_path / "a.tif", x10000(RI)), defaults=ReadDefaults(medium_ri=1.345))
    assert tomogram.medium_ri == 1.345


@pytest.mark.parametrize(
    "value", [0.15, [0.4, 0.15], [0.4, 0.15, "0.15"], [0.4, 0.15, True], "x", [400, 150, 150], [10**400] * 3]
)
def test_notes_of_another_form_are_named(tmp_path, value):
    plain_tiff(tmp_path / "a.tif")
    write_notes(tmp_path / "a.json", voxel_um=value)
    with pytest.raises(BadField, match=r"a\.json: `voxel_um`"):
        load(tmp_path / "a.tif")


def test_planes_that_notes_state_are_awaited(tmp_path):
    plain_tiff(tmp_path / "a.tif")
    write_notes(tmp_path / "a.json", voxel_um=VOXEL_UM, planes=60)
    assert "holds 6 of 60 pages" in raised(tmp_path / "a.tif", Incomplete)
    write_notes(tmp_path / "a.json", voxel_um=VOXEL_UM, planes=4)
    assert "holds 6 pages; 4" in raised(tmp_path / "a.tif", BadField)


def test_a_background_that_notes_name_is_not_taken_for_a_volume(tmp_path):
    plain_tiff(tmp_path / "empty.tif", np.full((4, 40, 44), 90, np.uint8))
    write_notes(tmp_path / "session.json", background="empty.tif")
    assert "is the background that session.json names" in raised(tmp_path / "empty.tif", UnknownFormat)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.full((6, 40, 44), 90, np.uint8), "holds uint8; allowed are float32 and float64 of RI, and uint16 of RI x 10,000"),
        (x10000(RI).astype(np.int16), "holds int16"),
        (RI.astype(np.float16), "holds float16"),
        (x10000(RI) // 13, "uint16 values of 1023 to 1092, 100.0% of them no RI of cells or media; allowed are float"),
        ((RI * 1e4).astype(np.float32), "float32 values of 13300 to 14199"),
        (RI - np.float32(1.337), "float32 values of -0.00"),
    ],
    ids=["uint8", "int16", "float16", "camera", "float x 10,000", "delta n"],
)
@pytest.mark.parametrize("noted", [True, False])
def test_what_is_no_ri_is_named_by_its_values(tmp_path, data, words, noted):
    """Whether or not its pitch is known: nobody shall be asked for the voxel size of a camera's picture."""
    if noted:
        write_notes(tmp_path / "session.json", voxel_um=VOXEL_UM)
    said = raised(plain_tiff(tmp_path / "cell1.tif", data), BadField)
    assert words in said
    assert "Holograms are named NAME_sp.tif" in said


@pytest.mark.parametrize(
    ("data", "options", "kind", "words"),
    [
        (x10000(RI)[0], {}, BadField, "one plane"),
        (np.full((6, 40, 44, 3), 13500, np.uint16), {"photometric": "rgb"}, BadField, "3 samples a pixel"),
        (x10000(RI), {"photometric": "miniswhite"}, BadField, "photometric 0"),
        (x10000(RI), {"compression": "lzma"}, Forbidden, "LZMA); allowed are none, deflate, PackBits"),
        (x10000(ri_volume((6, 2000, 2000))), {"max": 2**24}, TooLarge, "declares a volume"),
    ],
    ids=["page", "rgb", "white", "lzma", "large"],
)
def test_other_pictures_are_refused(tmp_path, data, options, kind, words):
    write_notes(tmp_path / "session.json", voxel_um=VOXEL_UM)
    options = dict(options)
    defaults = ReadDefaults(max_logical_bytes=options.pop("max", 2**28))
    assert words in raised(plain_tiff(tmp_path / "a.tif", data, **options), kind, defaults=defaults)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("ImageJ=1.5\nimages=6\nchannels=6\nslices=1\n", BadField, "6 channels and 1 slices"),
        ("ImageJ=1.5\nimages=6\nframes=6\nslices=1\n", BadField, "6 frames of 1 slice"),
        ("ImageJ=1.5\nimages=60\nslices=60\nunit=um\n", Incomplete, "holds 6 of 60 pages"),
        ("ImageJ=1.5\nimages=4\nslices=4\nunit=um\n", BadField, "holds 6 pages; 4"),
        ("ImageJ=1.5\nimages=x\n", BadField, "`images`"),
        ("ImageJ=1.5\nimages=99999999\nslices=99999999", BadField, "allowed is 1 to 32768"),
        ('{"shape": [2, 3, 40, 44]}', BadField, "allowed are ZYX and TZYX"),
        (ome_xml(pixels_xml((60, 40, 44))), Incomplete, "holds 6 of 60 pages"),
        (ome_xml(pixels_xml((6, 40, 44), SizeC=2)), BadField, "2 channels of 6 planes"),
        (
            ome_xml(pixels_xml((1, 40, 44), SizeC=6)),
            BadField,
            "6 channels of 1 plane by its OME-XML; RI is one. If they are planes",
        ),
        (ome_xml(pixels_xml((6, 40, 44), SizeZ="1e9")), BadField, "SizeZ"),
        (ome_xml(pixels_xml((6, 40, 44), DimensionOrder="ZXY")), BadField, "DimensionOrder"),
        (ome_xml(pixels_xml((6, 40, 44), PhysicalSizeZ=400)), BadField, "pitch along z by its OME-XML is 400 um"),
        (ome_xml(pixels_xml((6, 40, 44), PhysicalSizeZUnit="pixel")), Incomplete, "along z is not in the file"),
        (ome_xml(pixels_xml((6, 40, 44), PhysicalSizeX=None)), Incomplete, "along x is not in the file"),
        (ome_xml(pixels_xml((6, 40, 44), '<TiffData IFD="0"/>')), Incomplete, "names no page for plane z 1, t 0"),
        (ome_xml(pixels_xml((6, 40, 44), '<TiffData IFD="1" PlaneCount="6"/>')), Incomplete, "holds 6 of 7 pages"),
        (ome_xml(pixels_xml((6, 40, 44), '<TiffData FirstZ="7" PlaneCount="1"/>')), BadField, "plane z 7"),
        (
            ome_xml(pixels_xml((6, 40, 44), '<TiffData PlaneCount="5"/><TiffData FirstZ="5"/>')),
            BadField,
            "one page for several",
        ),
        (
            ome_xml(pixels_xml((6, 40, 44)), after=f'<Image Name="FL">{pixels_xml((6, 40, 44))}</Image>'),
            BadField,
            "2 images by its OME-XML ('RI', 'FL')",
        ),
        ("<?xml version='1.0'?><OME", CorruptContent, "makes no sense"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><OME>&a;</OME>", Forbidden, "document type or entities"),
    ],
)
def test_descriptions_that_cannot_be_followed(tmp_path, text, kind, words):
    described_tiff(tmp_path / "a.tif", x10000(RI), text, resolution=(1 / 0.16, 1 / 0.16))
    assert words in raised(tmp_path / "a.tif", kind)


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (
            ome_xml(
                pixels_xml(
                    (6, 40, 44),
                    '<TiffData IFD="0" PlaneCount="3"><UUID FileName="a.tif">urn:uuid:1</UUID></TiffData>'
                    '<TiffData IFD="0" FirstZ="3" PlaneCount="3"><UUID FileName="/etc/passwd">urn:uuid:2</UUID></TiffData>',
                ),
                root=' UUID="urn:uuid:1"',
            ),
            "1 other files hold planes of it, '/etc/passwd'",
        ),
        (
            ome_xml(
                pixels_xml(
                    (6, 40, 44),
                    '<TiffData IFD="0" PlaneCount="3"><UUID FileName="b.tif">urn:uuid:1</UUID></TiffData>'
                    '<TiffData IFD="0" FirstZ="3" PlaneCount="3"><UUID FileName="c.tif">urn:uuid:2</UUID></TiffData>',
                )
            ),
            "2 other files",
        ),
        (
            '<OME xmlns="x" UUID="urn:uuid:1"><BinaryOnly MetadataFile="../m.companion.ome" UUID="urn:uuid:2"/></OME>',
            "'../m.companion.ome', which is not opened",
        ),
    ],
)
def test_planes_in_other_files_are_never_followed(tmp_path, xml, words, monkeypatch):
    described_tiff(tmp_path / "a.tif", x10000(RI), xml)
    imagej_tiff(tmp_path / "b.tif", x10000(RI))
    opened: list[str] = []
    monkeypatch.setattr(tifffile.TiffFile, "__init__", _noting(tifffile.TiffFile.__init__, opened))
    assert words in raised(tmp_path / "a.tif", Forbidden)
    assert opened == [str(tmp_path / "a.tif")]


def _noting(real: Any, opened: list[str]) -> Any:
    def init(self: Any, file: Any, *rest: Any, **options: Any) -> None:
        opened.append(str(options.get("name")))
        real(self, file, *rest, **options)

    return init


def test_a_renamed_ome_tiff_is_its_own(tmp_path):
    inner = '<TiffData IFD="0" PlaneCount="6"><UUID FileName="old name.ome.tif">urn:uuid:1</UUID></TiffData>'
    described_tiff(tmp_path / "new.tif", RI, ome_xml(pixels_xml(RI.shape, inner), root=' UUID="urn:uuid:1"'))
    _, (tomogram,) = load(tmp_path / "new.tif")
    np.testing.assert_array_equal(tomogram.ri, RI)


def test_an_unset_resolution_is_no_pitch(tmp_path):
    """tifffile writes 1 pixel a unit where none is given: it is no pitch of 1 um."""
    imagej_tiff(tmp_path / "a.tif", x10000(RI), resolution=None)
    assert "along y, x is not in the file" in raised(tmp_path / "a.tif", Incomplete)


@pytest.mark.parametrize("keep", [0, 7, 200, 5000, -1])
def test_cut_off_files_are_never_volumes(tmp_path, keep):
    path = ome_tiff(tmp_path / "a.ome.tif", x10000(RI))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((Truncated, CorruptContent, Incomplete, UnknownFormat), match=r"a\.ome\.tif"):
        load(path)


def test_zeros_at_the_end_of_a_preallocated_file(tmp_path):
    path = imagej_tiff(tmp_path / "a.tif", x10000(RI))
    with tifffile.TiffFile(path) as file:
        offset = file.pages[-1].dataoffsets[0]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 40 * 44 * 2] = bytes(40 * 44 * 2)
    path.write_bytes(raw)
    with pytest.raises(CorruptContent, match="plane z = 5"):
        load(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    """Deflate that unpacks to 64 MiB where the strip may hold 7 kB: what is over is never made."""
    path = ome_tiff(tmp_path / "a.ome.tif", np.zeros((2, 40, 44), np.float32) + 1.34, compression="zlib")
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["StripOffsets"]
        counts = file.pages[0].tags["StripByteCounts"]
    bomb = zlib.compress(np.full(2**24, 1.34, np.float32).tobytes(), 9)
    at = len(raw)
    raw += bomb
    raw[tag.valueoffset : tag.valueoffset + 4] = struct.pack("<I", at)
    raw[counts.valueoffset : counts.valueoffset + 4] = struct.pack("<I", len(bomb))
    path.write_bytes(raw)
    _, (tomogram,) = load(path, defaults=ReadDefaults(max_logical_bytes=2**20))
    np.testing.assert_allclose(tomogram.ri, 1.34, atol=1e-6)


def test_what_the_first_page_declares_is_capped(tmp_path):
    path = plain_tiff(tmp_path / "a.tif")
    raw = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    for at in tags:
        raw[at : at + 4] = struct.pack("<I", 2**20)
    path.write_bytes(raw)
    assert "limit" in raised(path, TooLarge)


def test_links_and_changes_since_identification(tmp_path):
    path = imagej_tiff(tmp_path / "a.tif", x10000(RI))
    ticket = identify(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(Incomplete, match="changed"):
        read(ticket)
    path.rename(tmp_path / "b.tif")
    path.symlink_to(tmp_path / "b.tif")
    with pytest.raises(NotARegularFile):
        load(path)
