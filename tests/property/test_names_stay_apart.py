"""Any two names that differ give two keys, from the bytes of the file to the row of the database."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5t
from helpers_acquisition import OPTICS, holograms, load, tcf_file, wbcd_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wbcd.acquisition.names import MAX_NAME_BYTES, known_text
from wbcd.acquisition.tcf import sample_of_title
from wbcd.daemon.instruments import calibration_path, store_calibration
from wbcd.errors import BadField
from wbcd.simulation.files import write_tiff_pair
from wbcd.store.rows import acquisition_row, clean_text

# Pieces that have been taken for one another: escapes, code pages, wide text, marks, fill, composed and decomposed letters.
PIECES = st.sampled_from(
    [
        *(b"\\", b"\\\\", b"\\x", b"\\0", b"\\xb1", b"\\x00", b"\\udcb1", b"x", b"0", b"b1", b"u"),
        *(
            b"\x00",
            b"\x01",
            b"\n",
            b"\r",
            b"\t",
            b"\x7f",
            b"\x85",
            b"\xb1",
            b"\xe8",
            b"\xff",
            b"\xfe",
            b"\xff\xfe",
            b"\xed\xb2\xb1",
        ),
        *(
            "김지수".encode("cp949"),
            "김지수".encode(),
            "Müller".encode("cp1252"),
            "Müller".encode("cp850"),
            "Mu\u0308ller".encode(),
        ),
        *(
            "Müller".encode(),
            "\ufeff".encode(),
            "\ufffd".encode(),
            "\u200b".encode(),
            "A".encode("utf-16"),
            b"donor",
            b"DONOR",
            b"7",
        ),
    ]
)
NAMES = st.one_of(st.binary(max_size=12), st.lists(PIECES, max_size=4).map(b"".join))
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def unpadded(raw: bytes) -> bytes:
    """What HDF5's fixed-length texts are filled up with is not the name's."""
    return raw.rstrip(b"\0 ")


@settings(max_examples=2000, deadline=None)
@given(first=NAMES, second=NAMES)
def test_two_byte_strings_are_two_texts_and_two_rows(first: bytes, second: bytes) -> None:
    texts = known_text(first), known_text(second)
    assert (texts[0] == texts[1]) == (first == second)
    assert (clean_text(texts[0]) == clean_text(texts[1])) == (first == second)
    assert (clean_text(os.fsdecode(first)) == clean_text(os.fsdecode(second))) == (first == second)
    assert all("\0" not in text and text.encode() is not None for text in texts)


@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\"), max_size=40))
def test_a_name_in_utf8_is_itself(name: str) -> None:
    assert known_text(name.encode()) == name == clean_text(name)


@pytest.mark.parametrize("name", [r"C:\data\cell", "\\", r"\\server\share", r"a\xg1", r"a\X41", "a\\"])
def test_a_backslash_alone_changes_no_name(name: str) -> None:
    """Rows of an earlier wbcd keep their names."""
    assert known_text(name.encode()) == name == clean_text(name)


# --- through the readers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tcf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tcf_file(tmp_path_factory.mktemp("tcf") / "a.TCF")


@pytest.fixture(scope="module")
def acquisition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wbcd_file(tmp_path_factory.mktemp("h5") / "a.h5", holograms(2, 32))


KINDS = ("variable", "fixed", "array", "space-padded", "null-terminated")


def write_text(file: h5py.File, name: str, raw: bytes, kind: str, utf8: bool) -> None:
    """An attribute of one of HDF5's kinds of text, as programs in C, Python and MATLAB write it."""
    cset = h5t.CSET_UTF8 if utf8 else h5t.CSET_ASCII
    if name in file.attrs:
        del file.attrs[name]
    if kind == "variable":
        file.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8" if utf8 else "ascii"))
        return
    if kind == "array":
        file.attrs.create(name, np.array([raw]), dtype=h5py.string_dtype("utf-8" if utf8 else "ascii", max(1, len(raw))))
        return
    form = h5t.C_S1.copy()
    form.set_size(max(1, len(raw)) + 3)
    form.set_cset(cset)
    form.set_strpad({"fixed": h5t.STR_NULLPAD, "space-padded": h5t.STR_SPACEPAD, "null-terminated": h5t.STR_NULLTERM}[kind])
    filled = raw.ljust(form.get_size(), b" " if kind == "space-padded" else b"\0")
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(file.id, name.encode(), form, space)
    attribute.write(np.frombuffer(filled, dtype=f"S{form.get_size()}"), mtype=form)


def keys_of(path: Path) -> dict[str, Any]:
    ticket = load(path)[0]
    return {**acquisition_row(ticket), "sample": clean_text(ticket.sample_id)}


def variable(raw: bytes, kind: str) -> bytes:
    """C's texts end at a NUL."""
    return raw.replace(b"\0", b"") if kind in ("variable", "null-terminated") else raw


@quick
@given(first=NAMES, second=NAMES, kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)), utf8=st.booleans())
def test_two_attributes_are_two_samples(
    acquisition: Path, tmp_path: Path, first: bytes, second: bytes, kinds: tuple[str, str], utf8: bool
) -> None:
    """The same bytes are one sample whatever kind of HDF5's texts holds them; other bytes are another."""
    found = []
    names = variable(first, kinds[0]), variable(second, kinds[1])
    for raw, kind in zip(names, kinds, strict=True):
        path = Path(shutil.copy(acquisition, tmp_path / "b.h5"))
        with h5py.File(path, "r+") as file:
            file.attrs.pop("seal")
            write_text(file, "sample_id", raw, kind, utf8)
        found.append(keys_of(path)["sample"])
    expected = [clean_text(known_text(unpadded(raw))) or "unassigned" for raw in names]
    assert found == expected
    assert (found[0] == found[1]) == (expected[0] == expected[1])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("names", [("Anna", "Anton"), ("김 A", "김 B"), ("7", "77")])
def test_wide_texts_are_not_cut_at_their_first_letter(
    acquisition: Path, tmp_path: Path, encoding: str, names: tuple[str, str]
) -> None:
    found = set()
    for name in names:
        path = Path(shutil.copy(acquisition, tmp_path / "b.h5"))
        with h5py.File(path, "r+") as file:
            file.attrs.pop("seal")
            write_text(file, "sample_id", name.encode(encoding), "null-terminated", utf8=False)
        found.add(keys_of(path)["sample"])
    assert len(found) == 2


def test_what_c_left_behind_a_terminator_is_no_name(acquisition: Path, tmp_path: Path) -> None:
    for rest in (b"\x01\x02\x7f", b"\xff\xff\x03"):
        path = Path(shutil.copy(acquisition, tmp_path / "b.h5"))
        with h5py.File(path, "r+") as file:
            file.attrs.pop("seal")
            write_text(file, "sample_id", b"donor\0" + rest, "null-terminated", utf8=False)
        assert keys_of(path)["sample"] == "donor"


@quick
@given(first=NAMES, second=NAMES)
def test_two_titles_are_two_samples(tcf: Path, tmp_path: Path, first: bytes, second: bytes) -> None:
    found = []
    for raw in (first, second):
        path = Path(shutil.copy(tcf, tmp_path / "b.TCF"))
        with h5py.File(path, "r+") as file:
            del file.attrs["Title"]
            file.attrs["Title"] = np.array([raw + b"-001"])
            file.attrs["UniqueID"] = np.array([raw + b"."])
            file.attrs["DeviceSerial"] = np.array([raw + b"."])
        found.append(keys_of(path))
    same_name = first.strip(b" ") == second.strip(b" ")  # the vendor's software fills titles up in front, too
    if b"Default" not in (first, second):
        assert (found[0]["sample"] == found[1]["sample"]) == same_name
    for key in ("instrument_acquisition_id", "instrument_id"):
        assert (found[0][key] == found[1][key]) == (first == second)


TEXTS = st.text(max_size=12) | st.lists(
    st.sampled_from(["\ud800", "\udcb1", "\\xb1", "\\", "\0", "é", "e\u0301", "\ufeff", " "])
).map("".join)


@quick
@given(first=TEXTS, second=TEXTS)
def test_two_notes_are_two_samples(tmp_path: Path, first: str, second: str) -> None:
    found = []
    for name in (first, second):
        path = write_tiff_pair(tmp_path, "a", holograms(2, 32), sample_id=name, instrument_id=name, acquisition_id=name)
        found.append(keys_of(path))
        for one in tmp_path.iterdir():
            one.unlink()
    for key in ("sample", "instrument_acquisition_id", "instrument_id"):
        assert (found[0][key] == found[1][key]) == (first == second)


@quick
@given(first=NAMES, second=NAMES)
def test_two_folders_are_two_paths(tmp_path: Path, acquisition: Path, first: bytes, second: bytes) -> None:
    found = []
    for raw in (first, second):
        folder = tmp_path / os.fsdecode(raw.replace(b"\0", b"0").replace(b"/", b"_") + b".d")
        folder.mkdir(exist_ok=True)
        path = Path(shutil.copy(acquisition, folder / "b.h5"))
        found.append((path, keys_of(path)["path"]))
        shutil.rmtree(folder)
    assert (found[0][0] == found[1][0]) == (found[0][1] == found[1][1])


@quick
@given(first=TEXTS, second=TEXTS)
def test_two_instruments_have_two_calibrations(tmp_path: Path, first: str, second: str) -> None:
    places = [calibration_path(tmp_path, name) for name in (first, second)]
    assert (places[0] == places[1]) == (first == second)
    assert all(place.parent == tmp_path / "calibration" and len(os.fsencode(place.name)) < 200 for place in places)


def test_a_calibration_that_was_stored_under_the_shared_name_stays_its_own_instruments(tmp_path: Path) -> None:
    class Nothing:
        def as_json(self) -> dict[str, Any]:
            return {}

    old = store_calibration(tmp_path / "calibration" / "rig_1.json", Nothing(), {"instrument_id": "rig 1"})  # type: ignore[arg-type]
    assert calibration_path(tmp_path, "rig 1") == old
    assert calibration_path(tmp_path, "rig:1") != old


# --- the rules, by example -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("김지수".encode(), "김지수"),
        ("김지수".encode("cp949"), r"\xb1\xe8\xc1\xf6\xbc\xf6"),
        ("Müller".encode("cp1252"), r"M\xfcller"),
        ("Müller".encode("cp850"), r"M\x81ller"),
        (rb"M\xfcller", r"M\\xfcller"),
        (b"two\nlines", r"two\x0alines"),
        ("A".encode("utf-16-le"), r"A\0"),
    ],
)
def test_what_names_look_like(raw: bytes, text: str) -> None:
    assert known_text(raw) == text


def test_case_and_composition_are_part_of_a_name() -> None:
    names = ["donor", "Donor", "Mu\u0308ller", "M\u00fcller", "donor\u200b", "\ufeffdonor"]
    assert len({known_text(name.encode()) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("title", "sample"),
    [
        ("donor-001", "donor"),
        ("donor-\u0660\u0660\u0661", "donor-\u0660\u0660\u0661"),
        ("Default-001", None),
        ("  -001", None),
        ("\u3000a", "\u3000a"),
        ("a\u00a0", "a\u00a0"),
    ],
)
def test_only_the_vendors_own_number_is_taken_off_a_title(title: str, sample: str | None) -> None:
    assert sample_of_title(title) == sample


def test_a_name_too_long_for_a_key_is_refused_by_its_field(acquisition: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(acquisition, tmp_path / "b.h5"))
    for raw in (b"\xb1" * 300, "김".encode() * (MAX_NAME_BYTES // 3 + 1), b"a" * 1001):
        with h5py.File(path, "r+") as file:
            file.attrs.pop("seal", None)
            file.attrs["sample_id"] = np.bytes_(raw)
        with pytest.raises(BadField, match="`sample_id` is a text of") as caught:
            load(path)
        assert "shorter" in caught.value.advice


def test_a_number_is_no_name(acquisition: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(acquisition, tmp_path / "b.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs.pop("seal")
        file.attrs["sample_id"] = 7
    with pytest.raises(BadField, match="`sample_id` is 7; a text is expected"):
        load(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_notes_are_unicode_or_refused(tmp_path: Path, encoding: str) -> None:
    path = write_tiff_pair(tmp_path, "a", holograms(2, 32))
    notes = json.loads((tmp_path / "a.json").read_text()) | {"sample_id": "김지수"}
    (tmp_path / "a.json").write_bytes(json.dumps(notes, ensure_ascii=False).encode(encoding))
    if encoding == "utf-16-le":  # without a mark nobody can know
        with pytest.raises(BadField, match=r"a\.json"):
            load(path)
    else:
        assert load(path)[0].sample_id == "김지수"


def test_notes_in_a_code_page_say_what_to_do(tmp_path: Path) -> None:
    path = write_tiff_pair(tmp_path, "a", holograms(2, 32))
    (tmp_path / "a.json").write_bytes('{"sample_id": "김지수"}'.encode("cp949"))
    with pytest.raises(BadField, match=r"a\.json is not UTF-8") as caught:
        load(path)
    assert "Save it as UTF-8" in caught.value.advice


def test_a_sealed_file_keeps_its_seal_whatever_its_names_hold(tmp_path: Path) -> None:
    for name in (r"a\xb1", "two\nlines", "김지수"):
        ticket = load(wbcd_file(tmp_path / "a.h5", sample_id=name))[0]
        assert ticket.sample_id == known_text(name.encode())
        assert ticket.unprotected == ()
    assert OPTICS.medium_ri == ticket.medium_ri
