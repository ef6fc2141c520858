"""wbcd acquisition files: read back whole, refused where anything is missing or wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_acquisition import OPTICS, edit, holograms, load, wbcd_file

from wbcd.acquisition import ReadDefaults, identify, read
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
)
from wbcd.records import SourceFormat
from wbcd.simulation.files import write_reference


@pytest.fixture
def good(tmp_path) -> Path:
    return wbcd_file(tmp_path / "a.h5")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_everything_written_is_read_back(tmp_path, dtype):
    stack = dataclasses.replace(
        holograms(reference=True, dtype=dtype), illumination_rad_um=np.linspace(-6, 6, 8).reshape(4, 2), normal_frame=2
    )
    ticket, back = load(wbcd_file(tmp_path / "a.h5", stack))
    np.testing.assert_array_equal(back.holograms, stack.holograms)
    np.testing.assert_array_equal(back.reference, stack.reference)
    np.testing.assert_array_equal(back.illumination_rad_um, stack.illumination_rad_um)
    assert back.holograms.dtype == dtype
    assert (back.optics, back.normal_frame) == (OPTICS, 2)
    assert ticket.format is SourceFormat.HOLOGRAMS
    assert (ticket.acquisition_id, ticket.sample_id, ticket.instrument_id) == ("A-1", "donor 3", "rig")
    assert (ticket.medium_ri, ticket.wavelength_um, ticket.objective_na, ticket.pixel_size_um) == (1.337, 0.532, 1.2, 0.0625)
    assert ticket.acquired_at == "2024-05-06T07:08:09+02:00"


def test_reading_writes_nothing_beside_the_file(good):
    before = sorted(good.parent.iterdir()), good.stat().st_mtime_ns
    load(good)
    assert (sorted(good.parent.iterdir()), good.stat().st_mtime_ns) == before


def test_big_endian_frames_are_read(good):
    frames = holograms().holograms.astype(">u2")

    def replace(file):
        del file["holograms"]
        file.create_dataset("holograms", data=frames, chunks=(1, 64, 64))

    _, back = load(edit(good, replace))
    assert back.holograms.dtype == np.dtype("u2")
    np.testing.assert_array_equal(back.holograms, frames)


@pytest.mark.parametrize(
    "name",
    [
        "acquisition_id",
        "acquired_at",
        "instrument_id",
        "wavelength_um",
        "objective_na",
        "medium_ri",
        "pixel_size_um",
    ]
    + ["format", "format_version"],
)
def test_missing_attribute_names_file_and_field(good, name):
    edit(good, lambda file: file.attrs.pop(name))
    with pytest.raises(MissingField, match=rf"a\.h5: `{name}` is absent"):
        load(good)


def test_a_normal_frame_that_is_not_stated_is_left_to_the_fringes(good):
    edit(good, lambda file: file.attrs.pop("normal_frame"))
    edit(good, lambda file: file.attrs.pop("seal", None))
    assert load(good)[1].normal_frame is None


def test_sample_falls_back_to_the_default(good):
    edit(good, lambda file: file.attrs.pop("sample_id"))
    assert load(good)[0].sample_id == "unassigned"
    assert load(good, defaults=ReadDefaults(sample_id="donor 9"))[0].sample_id == "donor 9"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("wavelength_um", 532.0, ["532", "0.3 to 1.2 um"]),
        ("wavelength_um", np.nan, ["nan", "0.3 to 1.2"]),
        ("objective_na", 0.0, ["0.05 to 1.7"]),
        ("medium_ri", 13370.0, ["13370", "1 to 1.8"]),
        ("medium_ri", "water", ["'water'", "number"]),
        ("medium_ri", [1.3, 1.4], ["2 values"]),
        ("pixel_size_um", -0.1, ["-0.1", "0.005 to 2 um"]),
        ("normal_frame", 4, ["4", "0 to 3"]),
        ("normal_frame", 1.5, ["1.5", "whole"]),
        ("acquired_at", "2024-05-06 07:08:09", ["2024-05-06", "zone"]),
        ("acquired_at", "yesterday", ["yesterday", "ISO 8601"]),
        ("acquisition_id", 7, ["7", "text"]),
        ("format_version", 2, ["2", "1 to 1"]),
        ("format", "other", ["'other'", "wbcd-acquisition"]),
    ],
)
def test_bad_attribute_names_value_and_limit(good, name, value, words):
    def change(file):
        file.attrs[name] = value

    edit(good, change)
    with pytest.raises(BadField) as caught:
        load(good)
    for word in [str(good), f"`{name}`", *words]:
        assert word in caught.value.message


def test_attributes_may_be_arrays_of_one_element_and_bytes(good):
    def change(file):
        file.attrs["medium_ri"] = np.array([1.34])
        file.attrs["sample_id"] = np.bytes_("donor 4")
        file.attrs["complete"] = np.array([1], np.uint8)

    ticket, _ = load(edit(good, change))
    assert (ticket.medium_ri, ticket.sample_id) == (1.34, "donor 4")


@pytest.mark.parametrize("value", [None, False, 0, "yes"])
def test_without_complete_the_writer_is_not_done(good, value):
    def change(file):
        file.attrs.pop("complete")
        if value is not None:
            file.attrs["complete"] = value

    with pytest.raises(Incomplete, match="`complete`"):
        load(edit(good, change))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((4, 64, 64), np.float32), "float32"),
        (np.ones((4, 64, 64), np.int16), "int16"),
        (np.ones((64, 64), np.uint8), "shape"),
        (np.ones((1, 64, 64), np.uint8), "angle is 2 to 1024"),
        (np.ones((4, 64, 8), np.uint8), "x is 32 to 8192"),
        (np.ones((0, 64, 64), np.uint8), "shape"),
        (np.array([[["a"]]], dtype="S1"), "type"),
    ],
)
def test_wrong_type_or_shape(good, data, words):
    def change(file):
        del file["holograms"]
        file["holograms"] = data

    with pytest.raises(BadField, match=words):
        load(edit(good, change))


def test_absent_holograms(good):
    def change(file):
        del file["holograms"]

    with pytest.raises(MissingField, match="`holograms` is absent"):
        load(edit(good, change))


def test_holograms_as_group(good):
    def change(file):
        del file["holograms"]
        file.create_group("holograms")

    with pytest.raises(BadField, match="is a group"):
        load(edit(good, change))


def test_zero_frame_names_its_index(tmp_path):
    stack = holograms()
    stack.holograms[2] = 0
    with pytest.raises(CorruptContent, match="first at index 2"):
        load(wbcd_file(tmp_path / "a.h5", stack))


def test_frame_with_a_zero_tail(tmp_path):
    stack = holograms()
    stack.holograms[3, 40:] = 0
    with pytest.raises(CorruptContent, match="24 rows of zeros in frame 3"):
        load(wbcd_file(tmp_path / "a.h5", stack))


def test_a_vignetted_field_is_no_damage(tmp_path):
    stack = holograms()
    stack.holograms[:, :10] = 0
    stack.holograms[:, -10:] = 0
    load(wbcd_file(tmp_path / "a.h5", stack))


def test_unwritten_chunks_are_incomplete(good):
    def change(file):
        del file["holograms"]
        data = file.create_dataset("holograms", (4, 64, 64), np.uint8, chunks=(1, 64, 64), fletcher32=True)
        data[:3] = 9

    with pytest.raises(Incomplete, match="3 of 4 chunks"):
        load(edit(good, change))


def test_declared_and_never_written_contiguous(good):
    def change(file):
        del file["holograms"]
        file.create_dataset("holograms", (4, 64, 64), np.uint8)

    with pytest.raises(Incomplete, match="never written"):
        load(edit(good, change))


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.zeros((3, 2)), r"\(3, 2\).*\(4, 2\)"),
        (np.full((4, 2), np.nan), "nan"),
        (np.full((4, 2), 12.0), r"at most 15\.79 rad/um"),  # 2 pi 1.337 / 0.532
    ],
)
def test_illumination_is_bounded_by_the_medium(tmp_path, vectors, words):
    path = wbcd_file(tmp_path / "a.h5", dataclasses.replace(holograms(), illumination_rad_um=vectors))
    with pytest.raises(BadField, match=words):
        load(path)


def test_flipped_bit_in_a_frame_is_found_by_its_checksum(good):
    with h5py.File(good) as file:
        offset = file["holograms"].id.get_chunk_info(1).byte_offset
    with good.open("r+b") as raw:
        raw.seek(offset + 100)
        byte = raw.read(1)[0]
        raw.seek(offset + 100)
        raw.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptContent, match=r"a\.h5"):
        load(good)


# --- not what it says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", Incomplete),
        (b"\0" * 5000, Incomplete),
        (b"\x89HDF", Truncated),
        (b"\x89HDF\r\n\x1a\n", Truncated),
        (b"PK\x03\x04 not HDF5 at all", UnknownFormat),
        (b"\x89HDF\r\n\x1a\n" + b"\xff" * 4000, CorruptContent),
    ],
)
@pytest.mark.parametrize("suffix", ["h5", "TCF"])
def test_no_hdf5(tmp_path, content, error, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(error, match=r"a\."):
        load(path)


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = np.arange(4)
    with pytest.raises(UnknownFormat, match="neither"):
        load(tmp_path / "a.h5")


def test_hdf5_without_content_is_incomplete(tmp_path):
    h5py.File(tmp_path / "a.h5", "w").close()
    with pytest.raises(Incomplete, match="without content"):
        load(tmp_path / "a.h5")


def test_held_by_its_writer(good):
    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); f.flush(); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(good)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(Incomplete, match="held by its writer"):
            load(good)
        writer.stdin.close()
    load(good)


def test_changed_since_it_was_identified(good):
    ticket = identify(good)
    edit(good, lambda file: file.attrs.__setitem__("sample_id", "donor 5, another length of name"))
    with pytest.raises(Incomplete, match="changed after it was identified"):
        read(ticket)


def test_swapped_for_a_link_or_folder(good, tmp_path):
    ticket = identify(good)
    moved = good.rename(tmp_path / "moved")
    good.symlink_to(moved)
    with pytest.raises(NotARegularFile):
        read(ticket)
    good.unlink()
    good.mkdir()
    with pytest.raises(NotARegularFile):
        read(ticket)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 0.9999])
def test_truncated(good, share):
    whole = good.read_bytes()
    good.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Truncated):
        load(good)


def test_one_byte_short(good):
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(Truncated, match="header says"):
        load(good)


# --- the shared reference ------------------------------------------------------------------------


def test_shared_reference(tmp_path):
    stack = holograms(reference=True)
    write_reference(tmp_path / "session.wbcdref", stack.reference)
    path = wbcd_file(tmp_path / "a.h5", dataclasses.replace(stack, reference=None), reference_file="session.wbcdref")
    np.testing.assert_array_equal(load(path)[1].reference, stack.reference)


@pytest.mark.parametrize("name", ["../secret.wbcdref", "/etc/hostname", "sub/x.wbcdref", "..", ".", "", "a\\0b/"])
def test_reference_never_leaves_the_folder(tmp_path, name):
    inner = tmp_path / "inner"
    write_reference(tmp_path / "secret.wbcdref", holograms().holograms)
    with pytest.raises(BadField, match="plain name"):
        load(wbcd_file(inner / "a.h5", reference_file=name))


def test_reference_behind_a_symlink_is_refused(tmp_path):
    inner = tmp_path / "inner"
    path = wbcd_file(inner / "a.h5", reference_file="r.wbcdref")
    write_reference(tmp_path / "secret.wbcdref", holograms().holograms)
    (inner / "r.wbcdref").symlink_to(tmp_path / "secret.wbcdref")
    with pytest.raises(NotARegularFile, match="symbolic link"):
        load(path)


def test_reference_not_yet_there(tmp_path):
    with pytest.raises(Incomplete, match=r"session\.wbcdref"):
        load(wbcd_file(tmp_path / "a.h5", reference_file="session.wbcdref"))


def test_reference_of_another_shape_or_type(tmp_path):
    path = wbcd_file(tmp_path / "a.h5", reference_file="r.wbcdref")
    write_reference(tmp_path / "r.wbcdref", holograms(angles=3).holograms)
    with pytest.raises(BadField, match=r"\(3, 64, 64\).*\(4, 64, 64\)"):
        load(path)
    write_reference(tmp_path / "r.wbcdref", holograms(dtype=np.uint16).holograms)
    with pytest.raises(BadField, match="uint16"):
        load(path)


# --- hostile -------------------------------------------------------------------------------------


def _external_link(file, folder):
    file["holograms"] = h5py.ExternalLink(str(folder / "other.h5"), "holograms")


def _soft_link(file, folder):
    file["real"] = holograms().holograms
    file["holograms"] = h5py.SoftLink("/real")


def _external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(range(1, 129)) * 128)
    file.create_dataset("holograms", (4, 64, 64), np.uint8, external=[(str(folder / "secret"), 0, 4 * 64 * 64)])


def _virtual(file, folder):
    layout = h5py.VirtualLayout((4, 64, 64), np.uint8)
    layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "holograms", (4, 64, 64))
    file.create_virtual_dataset("holograms", layout)


def _virtual_of_itself(file, folder):
    file["real"] = holograms().holograms
    layout = h5py.VirtualLayout((4, 64, 64), np.uint8)
    layout[...] = h5py.VirtualSource(".", "real", (4, 64, 64))
    file.create_virtual_dataset("holograms", layout)


def _scale_offset(file, folder):
    file.create_dataset("holograms", data=holograms().holograms, chunks=(1, 64, 64), scaleoffset=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_external_link, "external link"),
        (_soft_link, "soft link"),
        (_external_storage, "external storage"),
        (_virtual, "virtual"),
        (_virtual_of_itself, "virtual"),
        (_scale_offset, "filter 6"),
    ],
)
def test_reading_elsewhere_is_refused_unread(tmp_path, change, words):
    wbcd_file(tmp_path / "other.h5")
    path = wbcd_file(tmp_path / "a.h5")

    def spoil(file):
        del file["holograms"]
        change(file, tmp_path)

    with pytest.raises(Forbidden, match=words):
        load(edit(path, spoil))


def test_a_link_anywhere_in_the_root_is_refused(good):
    edit(good, lambda file: file.__setitem__("extra", h5py.ExternalLink("/etc/hostname", "x")))
    with pytest.raises(Forbidden, match="`extra` is an external link"):
        load(good)


def test_declared_petabytes_are_refused_by_name(good):
    def change(file):
        del file["holograms"]
        file.create_dataset("holograms", (1000, 2**20, 2**22), np.uint8, chunks=(1, 1024, 1024))

    with pytest.raises(TooLarge, match=r"declares 4398046511104000 bytes; the limit is 805306368"):
        load(edit(good, change))


def test_limit_is_the_callers(good):
    with pytest.raises(TooLarge, match="16384 bytes; the limit is 1000"):
        load(good, defaults=ReadDefaults(max_logical_bytes=1000))


def test_chunks_larger_than_the_limit(good):
    def change(file):
        del file["holograms"]
        file.create_dataset("holograms", (4, 64, 64), np.uint8, maxshape=(None, None, None), chunks=(1024, 1024, 1024))

    with pytest.raises(TooLarge, match="chunks of 1073741824 bytes"):
        load(edit(good, change), defaults=ReadDefaults(max_logical_bytes=2**20))


def test_oversized_attribute(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.attrs["format"] = "wbcd-acquisition"
        file.attrs["format_version"] = np.ones(2**20)
    with pytest.raises(TooLarge, match="`format_version` holds 8388608 bytes; the limit is 65536"):
        load(tmp_path / "a.h5")


def test_reference_type_attribute_is_not_followed(good):
    def change(file):
        file.attrs["medium_ri"] = file["holograms"].ref

    with pytest.raises(BadField, match="neither a number nor a text"):
        load(edit(good, change))


def test_no_descriptor_is_left_open_after_success_or_failure(good):
    before = len(list(Path("/proc/self/fd").iterdir()))
    load(good)
    edit(good, lambda file: file.attrs.pop("complete"))
    with pytest.raises(Incomplete):
        load(good)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
