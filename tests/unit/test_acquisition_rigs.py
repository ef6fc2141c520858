"""Rigs' own layouts: TIFF pairs with notes and MATLAB v7.3 sessions, made the way the rigs make them, and spoilt."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from helpers_acquisition import OPTICS, edit, holograms, load

from wbcd.acquisition import identify, is_candidate, read
from wbcd.acquisition.isolate import IsolatedReader
from wbcd.acquisition.limits import ReadDefaults
from wbcd.acquisition.session import backgrounds_of_mat, backgrounds_of_tiff, own_notes
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
from wbcd.records import HologramStack, SourceFormat
from wbcd.simulation.files import write_mat, write_tiff_pair, write_tiff_stack

STACK = holograms(5, 64, reference=True)
NOTES = {"wavelength_um": 0.532, "objective_na": 1.16, "medium_ri": 1.3355, "pixel_size_um": 0.055}


def same(found: HologramStack, made: HologramStack) -> None:
    np.testing.assert_array_equal(found.holograms, made.holograms)
    if made.reference is None:
        assert found.reference is None
    else:
        np.testing.assert_array_equal(found.reference, made.reference)
    assert found.holograms.dtype == made.holograms.dtype


def notes_of(path: Path, **changes: Any) -> Path:
    notes = path.parent / path.name.replace("_sp.tif", ".json").replace("_Tomog.mat", "_Tomog.json")
    old = json.loads(notes.read_text()) if notes.exists() else {}
    notes.write_text(json.dumps({key: value for key, value in {**old, **changes}.items() if value is not None}))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return write_tiff_pair(tmp_path, "cell-1", STACK, sample_id="donor 3")


@pytest.fixture
def session(tmp_path: Path) -> Path:
    write_mat(tmp_path / "bg001_Tomog.mat", STACK.reference, OPTICS)
    return write_mat(tmp_path / "sample007_Tomog.mat", STACK.holograms, OPTICS)


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a_sp.tif", "A_SP.TIFF", "sample001_Tomog.mat", "x_tomog.MAT"])
def test_samples_are_candidates(name: str) -> None:
    assert is_candidate(Path("session") / name)


@pytest.mark.parametrize("name", ["a_bg.tif", "bg.tif", "a.json", "bg001_Tomog.mat", "notes.mat", ".a_sp.tif"])
def test_companions_are_not(name: str) -> None:
    assert not is_candidate(Path("session") / name)


def test_a_sample_has_its_own_background_or_the_sessions_never_anothers() -> None:
    names = ["a_sp.tif", "a_bg.tif", "b_sp.tif", "BG.TIF"]
    assert backgrounds_of_tiff("a_sp.tif", names) == ["a_bg.tif"]
    assert backgrounds_of_tiff("b_sp.tif", names) == ["BG.TIF"]
    assert backgrounds_of_tiff("b_sp.tif", ["a_bg.tif"]) == []
    assert backgrounds_of_mat("sample1_Tomog.mat", ["bg2_Tomog.mat", "sample1_Tomog.mat"]) == ["bg2_Tomog.mat"]
    assert own_notes("c_sp.tif") == ("c_sp.json", "c.json", "session.json")


# --- TIFF pairs --------------------------------------------------------------------------------------


def test_a_pair_comes_back_whole(pair: Path) -> None:
    ticket, stack = load(pair)
    same(stack, STACK)
    assert stack.optics == OPTICS
    assert (ticket.format, ticket.sample_id, ticket.acquisition_id) == (SourceFormat.TIFF_PAIR, "donor 3", "cell-1_sp")
    assert (ticket.medium_ri, ticket.pixel_size_um) == (OPTICS.medium_ri, OPTICS.pixel_size_um)


@pytest.mark.parametrize("shape", [(4, 33, 47), (9, 47, 33)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [None, "deflate", "packbits", "predictor"])
def test_every_way_to_store_a_page(tmp_path: Path, shape: Any, dtype: Any, big: bool, order: Any, packed: Any) -> None:
    frames = np.random.default_rng(3).integers(1, np.iinfo(dtype).max, shape).astype(dtype)
    frames[:, :, 10:20] = 7  # runs, for PackBits
    write_tiff_pair(tmp_path, "a", replace(STACK, holograms=frames, reference=frames + 1))
    raw_tiff(tmp_path / "a_sp.tif", frames, big=big, order=order, packed=packed)
    _, stack = load(tmp_path / "a_sp.tif")
    np.testing.assert_array_equal(stack.holograms, frames)


def raw_tiff(path: Path, frames: np.ndarray, *, big: bool, order: str, packed: str | None) -> None:
    """A TIFF of several strips a page, written by hand: tifffile cannot write these compressions by itself."""
    rows = 10
    out = bytearray(
        (b"II" if order == "<" else b"MM")
        + struct.pack(order + "HHHQ" if big else order + "HI", *((43, 8, 0, 0) if big else (42, 0)))
    )
    links = [8 if big else 4]
    for frame in frames:
        offsets, counts = [], []
        for start in range(0, frame.shape[0], rows):
            block = frame[start : start + rows]
            if packed == "predictor":
                block = np.diff(block, axis=1, prepend=np.zeros((len(block), 1), block.dtype))
            plain = block.astype(block.dtype.newbyteorder(order)).tobytes()
            strip = {None: plain, "packbits": packbits(plain)}.get(packed, zlib.compress(plain))
            offsets.append(len(out))
            counts.append(len(strip))
            out += strip
        entries = {256: frame.shape[1], 257: frame.shape[0], 258: 8 * frame.itemsize, 262: 1, 277: 1, 278: rows}
        entries[259] = {None: 1, "packbits": 32773}.get(packed, 8)
        if packed == "predictor":
            entries[317] = 2
        word = "Q" if big else "I"
        tables = {}
        for tag, values in ((273, offsets), (279, counts)):
            tables[tag] = len(out)
            out += struct.pack(order + word * len(values), *values)
        struct.pack_into(order + word, out, links.pop(), len(out))
        tags = sorted([*entries, *tables])
        out += struct.pack(order + ("Q" if big else "H"), len(tags))
        for tag in tags:
            if tag in tables:
                out += struct.pack(order + "HH" + word + word, tag, 16 if big else 4, len(offsets), tables[tag])
            else:
                out += struct.pack(order + "HH" + word, tag, 4, 1) + struct.pack(order + "I", entries[tag]).ljust(
                    8 if big else 4, b"\0"
                )
        links.append(len(out))
        out += bytes(8 if big else 4)
    path.write_bytes(out)


def packbits(plain: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(plain):
        run = 1
        while run < 128 and plain[at : at + 1] * (run + 1) == plain[at : at + run + 1]:
            run += 1
        if run > 2:
            out += bytes([257 - run, plain[at]])
            at += run
        else:
            part = plain[at : at + 5]
            out += bytes([len(part) - 1]) + part
            at += len(part)
    return bytes(out)


def test_the_sessions_background_and_notes_serve_where_the_sample_has_none(tmp_path: Path) -> None:
    write_tiff_stack(tmp_path / "bg.tif", STACK.reference)
    write_tiff_stack(tmp_path / "a_sp.tif", STACK.holograms)
    (tmp_path / "session.json").write_text(json.dumps({**NOTES, "sample_id": "donor 5"}))
    (tmp_path / "a.json").write_text(json.dumps({"medium_ri": 1.34}))  # this sample's own medium
    ticket, stack = load(tmp_path / "a_sp.tif")
    same(stack, STACK)
    assert (ticket.sample_id, stack.optics.medium_ri, stack.optics.objective_na) == ("donor 5", 1.34, 1.16)


def test_without_a_background_only_when_the_notes_say_so(pair: Path) -> None:
    (pair.parent / "cell-1_bg.tif").unlink()
    with pytest.raises(Incomplete, match="no background") as caught:
        load(pair)
    assert '"background": "none"' in caught.value.advice
    same(load(notes_of(pair, background="none"))[1], replace(STACK, reference=None))


def test_notes_on_their_way_are_awaited(pair: Path) -> None:
    notes = pair.parent / "cell-1.json"
    text = notes.read_text()
    for state in (None, "", " \n"):
        notes.unlink(missing_ok=True)
        if state is not None:
            notes.write_text(state)
        with pytest.raises(Incomplete):
            load(pair)
    notes.write_text(text)
    load(pair)


def test_a_pair_still_being_written_is_awaited(pair: Path) -> None:
    write_tiff_stack(pair, STACK.holograms[:4])
    with pytest.raises(Incomplete, match=r"holds 4 frames, its background cell-1_bg\.tif 5"):
        load(pair)
    with pytest.raises(Incomplete, match="4 of the 5 frames"):
        load(notes_of(pair, background="none"))


def test_vectors_and_the_normal_frame_may_be_given(pair: Path) -> None:
    vectors = [[0.0, 0.1 * i] for i in range(5)]
    _, stack = load(notes_of(pair, illumination_rad_um=vectors, normal_frame=2))
    np.testing.assert_array_equal(stack.illumination_rad_um, vectors)
    assert stack.normal_frame == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"medium_ri": None}, MissingField, "`medium_ri` is in none of cell-1_sp.json, cell-1.json"),
        ({"wavelength_um": 532}, BadField, "cell-1.json: `wavelength_um` is 532 um"),
        ({"wavelength_um": "green"}, BadField, "allowed is a number"),
        ({"wavelength_um": True}, BadField, "allowed is a number"),
        ({"wavelength_um": 10**400}, BadField, "is inf um"),
        ({"normal_frame": 5}, BadField, "allowed is 0 to 4"),
        ({"normal_frame": 1.5}, BadField, "whole"),
        ({"illumination_rad_um": [[0, 0]]}, BadField, r"\(1, 2\).*\(5, 2\)"),
        ({"illumination_rad_um": "round"}, BadField, "no list of pairs"),
        ({"sample_id": 7}, BadField, "a text"),
        ({"background": "../cell-1_bg.tif"}, BadField, "plain name"),
    ],
)
def test_a_wrong_note_is_named(pair: Path, change: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        load(notes_of(pair, **change))


@pytest.mark.parametrize("text", ["[1]", "{", '{"a":' * 100_000, "\xff"])
def test_notes_that_are_no_object(pair: Path, text: str) -> None:
    (pair.parent / "cell-1.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadField):
        load(pair)


def test_a_background_behind_a_link_is_refused(pair: Path, tmp_path: Path) -> None:
    background = pair.parent / "cell-1_bg.tif"
    background.rename(tmp_path / "elsewhere")
    background.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotARegularFile):
        load(pair)


@pytest.mark.parametrize(
    ("frames", "options", "error", "words"),
    [
        (np.ones((5, 64, 64, 3), np.uint8), {"photometric": "rgb"}, BadField, "3 samples"),
        (np.ones((5, 64, 64), np.float32), {}, BadField, "32 bits"),
        (np.ones((5, 64, 64), np.int16), {}, BadField, "allowed is uint8"),
        (np.ones((5, 64, 64), np.uint8), {"photometric": "miniswhite"}, BadField, "0 is black"),
        (np.ones((5, 64, 64), np.uint8), {"tile": (16, 16)}, BadField, "tiled"),
        (np.ones((5, 64, 64), np.uint8), {"compression": "lzma"}, Forbidden, "allowed are none, deflate, PackBits"),
        (np.ones((1, 64, 64), np.uint8), {}, BadField, "along angle is 2 to 1024"),
        (np.ones((5, 8, 64), np.uint8), {}, BadField, "along y is 32"),
    ],
)
def test_what_is_no_stack_of_frames(pair: Path, frames: Any, options: Any, error: Any, words: str) -> None:
    tifffile.imwrite(pair, frames, metadata=None, **{"photometric": "minisblack", **options})
    with pytest.raises(error, match=words):
        load(pair)


def test_pages_of_unlike_size(pair: Path) -> None:
    with tifffile.TiffWriter(pair) as file:
        for size in (64, 64, 60):
            file.write(np.ones((size, size), np.uint8), photometric="minisblack", metadata=None)
    with pytest.raises(BadField, match="page 2 is"):
        load(pair)


def test_an_old_matlab_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a_Tomog.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(600, b" "))
    with pytest.raises(UnknownFormat, match=r"version 5.0; only 7.3") as caught:
        load(path)
    assert "-v7.3" in caught.value.advice


def test_a_tiff_is_cut_anywhere_and_never_read_wrong(pair: Path) -> None:
    whole = pair.read_bytes()
    for share in (0.0, 0.0001, 0.1, 0.5, 0.9, 0.999):
        pair.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises((Truncated, CorruptContent, UnknownFormat, Incomplete, BadField)):
            load(pair)
        pair.write_bytes(
            whole[: min(int(share * len(whole)), len(whole) - 250)].ljust(len(whole), b"\0")
        )  # directories at the end
        with pytest.raises((Truncated, CorruptContent, UnknownFormat, Incomplete, BadField)):
            load(pair)


def test_flipped_bytes_in_the_directories_never_escape_the_error_tree(pair: Path) -> None:
    whole = pair.read_bytes()
    rng = np.random.default_rng(11)
    with tifffile.TiffFile(pair) as file:
        places = [page.offset for page in file.pages]
    for _ in range(150):
        spoilt = bytearray(whole)
        at = min(int(rng.choice(places)) + int(rng.integers(0, 200)), len(whole) - 1)
        spoilt[at] = int(rng.integers(0, 256))
        pair.write_bytes(spoilt)
        try:
            _, stack = load(pair)
        except (BadField, CorruptContent, Forbidden, Incomplete, TooLarge, Truncated, UnknownFormat):
            continue
        assert stack.holograms.shape == STACK.holograms.shape


def test_a_bomb_unpacks_to_its_declared_size_only(tmp_path: Path) -> None:
    write_tiff_pair(tmp_path, "a", STACK)
    raw_tiff(tmp_path / "a_sp.tif", STACK.holograms, big=False, order="<", packed="deflate")
    raw = bytearray((tmp_path / "a_sp.tif").read_bytes())
    bomb = zlib.compress(bytes([9]) * 50_000_000, 9)
    with tifffile.TiffFile(tmp_path / "a_sp.tif") as file:
        where = file.pages[0].tags[273].valueoffset
    struct.pack_into("<I", raw, where, len(raw))
    struct.pack_into("<I", raw, where + 4 * 7, len(bomb))
    (tmp_path / "a_sp.tif").write_bytes(raw + bomb)
    _, stack = load(tmp_path / "a_sp.tif")
    assert (stack.holograms[0, :10] == 9).all()
    np.testing.assert_array_equal(stack.holograms[1:], STACK.holograms[1:])


def test_a_chain_of_pages_has_an_end(tmp_path: Path) -> None:
    frames = np.ones((1100, 32, 32), np.uint8)
    write_tiff_pair(tmp_path, "a", STACK)
    write_tiff_stack(tmp_path / "a_sp.tif", frames)
    with pytest.raises(TooLarge, match="1024 pages"):
        load(tmp_path / "a_sp.tif")


def test_declared_bytes_are_capped(pair: Path) -> None:
    with pytest.raises(TooLarge, match="limit is 10000"):
        read(identify(pair), defaults=ReadDefaults(max_logical_bytes=10_000))


# --- lost frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tiff", "mat"])
def test_a_lost_frame_passes_an_unwritten_tail_does_not(tmp_path: Path, form: str) -> None:
    stack = holograms(20, 64, reference=True)

    def write() -> Path:
        if form == "tiff":
            return write_tiff_pair(tmp_path, "a", stack)
        write_mat(tmp_path / "bg1_Tomog.mat", stack.reference, OPTICS)
        return write_mat(tmp_path / "a_Tomog.mat", stack.holograms, OPTICS)

    stack.holograms[[3, 4]] = 0
    assert not load(write())[1].holograms[3].any()
    stack.holograms[[8]] = 0
    with pytest.raises(CorruptContent, match="3 frames of nothing but zeros"):
        load(write())
    stack = holograms(20, 64, reference=True)
    stack.holograms[19] = 0
    with pytest.raises(CorruptContent, match="first at index 19"):
        load(write())


# --- MATLAB sessions ---------------------------------------------------------------------------------


def test_a_session_comes_back_with_its_axes_right(session: Path) -> None:
    ticket, stack = load(session, defaults=ReadDefaults(medium_ri=1.338))
    same(stack, STACK)
    assert stack.optics == replace(OPTICS, medium_ri=1.338)  # the file does not say: the recipe's
    assert (ticket.format, ticket.acquisition_id) == (SourceFormat.MATLAB, "sample007_Tomog")
    assert ticket.acquired_at == "2024-01-01T08:00:00"


def test_axes_of_frames_that_are_not_square(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(1, 255, (60, 40, 36), np.uint8)
    write_mat(tmp_path / "bg_Tomog.mat", frames + 1, OPTICS)
    write_mat(tmp_path / "s_Tomog.mat", frames, OPTICS)
    _, stack = load(tmp_path / "s_Tomog.mat")
    np.testing.assert_array_equal(stack.holograms, frames)
    assert stack.normal_frame is None  # such files do not say


def test_medium_per_sample(session: Path) -> None:
    _, stack = load(notes_of(session, medium_ri=1.3355, normal_frame=1))
    assert (stack.optics.medium_ri, stack.normal_frame) == (1.3355, 1)


def test_two_backgrounds_need_a_word(session: Path) -> None:
    shutil.copy(session.parent / "bg001_Tomog.mat", session.parent / "bg002_Tomog.mat")
    with pytest.raises(BadField, match="2 backgrounds") as caught:
        load(session)
    assert "session.json" in caught.value.advice
    (session.parent / "session.json").write_text('{"background": "bg002_Tomog.mat"}')
    same(load(session)[1], STACK)


def test_a_session_without_background(session: Path) -> None:
    (session.parent / "bg001_Tomog.mat").unlink()
    with pytest.raises(Incomplete, match="no background"):
        load(session)
    (session.parent / "session.json").write_text('{"background": "none"}')
    assert load(session)[1].reference is None


def test_a_cell_array_of_frames(session: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["tomogMap"]
        group = file.create_group("#refs#")
        cells = [group.create_dataset(f"c{i}", data=frame.T).ref for i, frame in enumerate(STACK.holograms)]
        file.create_dataset("tomogMap", data=np.array(cells, h5py.ref_dtype)[:, None], dtype=h5py.ref_dtype)

    same(load(edit(session, change))[1], STACK)


def _replace(name: str, **options: Any) -> Any:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def _external(file: h5py.File) -> None:
    del file["tomogMap"]
    group = file.create_group("#refs#")
    outside = group.create_dataset("a", (64, 64), "u1", external=[("/etc/passwd", 0, 64 * 64)])
    file.create_dataset("tomogMap", data=np.array([outside.ref] * 5, h5py.ref_dtype), dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_replace("tomogMap", data=np.ones((5, 64, 64)) / 2), BadField, "frame 0, holds 0.5"),
        (_replace("tomogMap", data=np.ones((5, 64, 64), np.complex64)), BadField, "complex64"),
        (_replace("tomogMap", data=np.ones((64, 64), np.uint8)), BadField, "shape"),
        (_replace("res", data=np.array([[62.5]])), BadField, "`res` is 62.5"),
        (_replace("res", data=np.array([[1.0, 2.0]])), BadField, "one number"),
        (_replace("NA", data=np.array([["x"]], dtype="S1")), BadField, "one number"),
        (lambda file: file.pop("lambda"), MissingField, "`lambda` is absent"),
        (_external, Forbidden, "external storage"),
        (_replace("tomogMap", shape=(5,), dtype=h5py.ref_dtype), BadField, "no array"),
        (_replace("tomogMap", shape=(5,), dtype=h5py.regionref_dtype), Forbidden, "references"),
        (_replace("tomogMap", shape=(5000,), dtype=h5py.ref_dtype), Forbidden, "at most 1024"),
    ],
)
def test_a_spoilt_session_is_named(session: Path, change: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        load(edit(session, change))


def test_a_cut_matlab_file(session: Path) -> None:
    whole = session.read_bytes()
    for size in (100, 512, 600, len(whole) // 2, len(whole) - 1):
        session.write_bytes(whole[:size])
        with pytest.raises((Truncated, CorruptContent, UnknownFormat, Incomplete)):
            load(session)


# --- the isolated reader -----------------------------------------------------------------------------


def test_both_are_read_in_the_isolated_child(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "m").mkdir()
    pair = write_tiff_pair(tmp_path / "t", "a", STACK)
    write_mat(tmp_path / "m" / "bg_Tomog.mat", STACK.reference, OPTICS)
    session = write_mat(tmp_path / "m" / "s_Tomog.mat", STACK.holograms, OPTICS)
    with IsolatedReader() as reader:
        same(reader.read(identify(pair))[1], STACK)
        same(reader.read(identify(session))[1], STACK)
        pair.write_bytes(pair.read_bytes()[:2000])
        with pytest.raises((Truncated, CorruptContent)):
            reader.read(identify(pair))
