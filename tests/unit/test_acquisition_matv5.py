"""MATLAB sessions as people save them: v7 (packed), v6, other classes, other names; by SciPy and by hand, and spoilt."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from helpers_acquisition import OPTICS, edit, holograms, load

from wbcd.acquisition import is_candidate
from wbcd.acquisition.candidate import identify
from wbcd.acquisition.isolate import IsolatedReader
from wbcd.acquisition.limits import ReadDefaults
from wbcd.acquisition.matv5 import MatFile
from wbcd.acquisition.session import backgrounds_of_mat, own_notes
from wbcd.errors import (
    BadField,
    CorruptContent,
    Forbidden,
    Incomplete,
    InputError,
    MissingField,
    TooLarge,
    Truncated,
    UnknownFormat,
)
from wbcd.records import HologramStack, SourceFormat
from wbcd.simulation.files import write_mat

STACK = holograms(5, 64, reference=True)
NUMBERS = {"res": OPTICS.pixel_size_um, "NA": OPTICS.objective_na, "lambda": OPTICS.wavelength_um}


def matlab(frames: np.ndarray) -> np.ndarray:
    """[angle, y, x] as MATLAB's (y, x, angle)."""
    return np.asfortranarray(frames.transpose(1, 2, 0))


def save(path: Path, frames: Any, *, packed: bool = True, **more: Any) -> Path:
    scipy.io.savemat(path, {"tomogMap": frames, **NUMBERS, **more}, do_compression=packed)
    return path


@pytest.fixture
def session(tmp_path: Path) -> Path:
    save(tmp_path / "bg001_Tomog.mat", matlab(STACK.reference))
    return save(tmp_path / "sample007_Tomog.mat", matlab(STACK.holograms), dateTimeVal="2024-03-01 08:00:00")


def same(found: HologramStack, frames: np.ndarray = STACK.holograms, reference: np.ndarray | None = STACK.reference) -> None:
    np.testing.assert_array_equal(found.holograms, frames)
    np.testing.assert_array_equal(found.reference, reference)
    assert found.holograms.dtype == frames.dtype
    assert found.optics == OPTICS


# --- what is read ------------------------------------------------------------------------------------


def test_a_v7_session_comes_back_whole(session: Path) -> None:
    ticket, stack = load(session)
    same(stack)
    assert (ticket.format, ticket.acquisition_id) == (SourceFormat.MATLAB_5, "sample007_Tomog")
    assert ticket.acquired_at == "2024-03-01T08:00:00"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(4, 33, 47), (9, 47, 33)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_shape_and_type(tmp_path: Path, packed: bool, shape: Any, dtype: Any) -> None:
    frames = np.random.default_rng(3).integers(1, np.iinfo(dtype).max, shape).astype(dtype)
    save(tmp_path / "bg.mat", matlab(frames[::-1]), packed=packed)
    stack = load(save(tmp_path / "sample1.mat", matlab(frames), packed=packed))[1]
    same(stack, frames, frames[::-1])


OTHERS = (np.float32, np.float64, np.int16, np.int32, np.uint32, np.int64, np.uint64)


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("top", [255, 4095])
@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_frames_in_an_array_of_another_class_are_the_frames(tmp_path: Path, dtype: Any, top: int, version: str) -> None:
    """``zeros(ny, nx, n, 'single')`` filled from a camera loses nothing."""
    camera = np.uint8 if top == 255 else np.uint16
    frames = np.random.default_rng(1).integers(1, top, (5, 40, 48))
    frames[2, 3, 4] = top
    for name, values in (("bg001_Tomog.mat", frames[::-1]), ("sample001_Tomog.mat", frames)):
        if version == "v7":
            save(tmp_path / name, matlab(values.astype(dtype)))
        else:
            write_mat(tmp_path / name, values.astype(dtype), OPTICS)
    same(load(tmp_path / "sample001_Tomog.mat")[1], frames.astype(camera), frames[::-1].astype(camera))


def test_a_sample_that_needs_more_bits_than_its_background_is_read_with_it(tmp_path: Path) -> None:
    dim, bright = np.full((4, 32, 32), 200.0, np.float32), np.full((4, 32, 32), 700.0, np.float32)
    save(tmp_path / "bg.mat", matlab(dim))
    stack = load(save(tmp_path / "sample1.mat", matlab(bright)))[1]
    assert stack.holograms.dtype == stack.reference.dtype == np.uint16
    save(tmp_path / "bg.mat", matlab(dim.astype(np.uint8)))
    assert load(tmp_path / "sample1.mat")[1].reference.dtype == np.uint16


def test_a_camera_of_other_bits_is_another_camera(tmp_path: Path) -> None:
    save(tmp_path / "bg.mat", matlab(STACK.reference.astype(np.uint16)))
    with pytest.raises(BadField, match="demand uint8"):
        load(save(tmp_path / "sample1.mat", matlab(STACK.holograms)))


@pytest.mark.parametrize("bad", [0.5, -1.0, 65536.0, np.nan, np.inf])
@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_what_is_no_grey_value_is_named(tmp_path: Path, bad: float, version: str) -> None:
    frames = STACK.holograms.astype(np.float64)
    frames[3, 5, 7] = bad
    path = tmp_path / "sample001.mat"
    save(path, matlab(frames)) if version == "v7" else write_mat(path, frames, OPTICS)
    (tmp_path / "session.json").write_text('{"background": "none"}')
    with pytest.raises(BadField, match=r"`tomogMap`, frame 3, holds .* no grey value") as caught:
        load(path)
    assert "uint8 or uint16" in caught.value.advice


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_a_cell_array_of_frames(tmp_path: Path, dtype: Any) -> None:
    for name, frames in (("bg.mat", STACK.reference), ("sample1.mat", STACK.holograms)):
        cells = np.empty((1, len(frames)), object)
        for index, frame in enumerate(frames):
            cells[0, index] = frame.astype(dtype)
        save(tmp_path / name, cells)
    same(load(tmp_path / "sample1.mat")[1])


def test_either_kind_of_background_goes_with_either_kind_of_sample(session: Path) -> None:
    background = session.parent / "bg001_Tomog.mat"
    background.unlink()
    write_mat(background, STACK.reference, OPTICS)
    same(load(session)[1])
    write_mat(session, STACK.holograms, OPTICS)
    save(background, matlab(STACK.reference))
    same(load(session)[1])


def test_the_isolated_reader_reads_it(session: Path) -> None:
    with IsolatedReader(root=session.parent) as reader:
        stack = reader.read(identify(session))[1]
    assert isinstance(stack, HologramStack)
    same(stack)


# --- by hand: what SciPy does not write --------------------------------------------------------------


def element(order: str, kind: int, data: bytes, *, pad: bool = True) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8 if pad else 0)


def array(
    order: str, name: bytes, values: np.ndarray, *, kind: int, stored: int, dims: tuple[int, ...] | None = None, flags: int = 0
) -> bytes:
    dims = values.shape if dims is None else dims
    raw = values.ravel(order="F").astype(values.dtype.newbyteorder(order)).tobytes()
    small = struct.pack(f"{order}I", len(raw) << 16 | stored) + raw.ljust(4, b"\0") if len(raw) <= 4 else None
    return element(
        order,
        14,
        element(order, 6, struct.pack(f"{order}II", flags << 8 | kind, 0))
        + element(order, 5, struct.pack(f"{order}{len(dims)}i", *dims))
        + element(order, 1, name)
        + (small or element(order, stored, raw)),
    )


def v5(path: Path, *elements: bytes, order: str = "<") -> Path:
    head = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(116, b" ") + bytes(8) + struct.pack(f"{order}H", 0x0100)
    path.write_bytes(head + (b"IM" if order == "<" else b"MI") + b"".join(elements))
    return path


def numbers(order: str = "<") -> list[bytes]:
    return [array(order, name.encode(), np.array([[value]]), kind=6, stored=9) for name, value in NUMBERS.items()]


def packed(order: str, plain: bytes) -> bytes:
    return element(order, 15, zlib.compress(plain), pad=False)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    (tmp_path / "session.json").write_text('{"background": "none"}')
    return tmp_path / "sample001.mat"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("squeeze", [False, True])
def test_either_byte_order_and_numbers_that_matlab_packed_into_bytes(alone: Path, order: str, squeeze: bool) -> None:
    """MATLAB stores whole doubles as uint8, and up to four bytes in the tag itself."""
    frames = array(order, b"tomogMap", matlab(STACK.holograms).astype(np.uint8), kind=6, stored=2)
    parts = [array(order, b"res", np.array([[1]], np.uint8), kind=6, stored=2), *numbers(order)[1:], frames]
    stack = load(v5(alone, *(packed(order, part) if squeeze else part for part in parts), order=order))[1]
    np.testing.assert_array_equal(stack.holograms, STACK.holograms)
    assert stack.optics.pixel_size_um == 1.0


def test_numbers_in_a_smaller_type_than_their_class_are_the_classes(alone: Path) -> None:
    frames = array("<", b"tomogMap", matlab(STACK.holograms), kind=11, stored=2)  # class uint16, stored as bytes
    assert load(v5(alone, *numbers(), frames))[1].holograms.dtype == np.uint16


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sample001.mat", "SAMPLE_2.MAT", "sample.mat", "sample001_Tomog.mat"])
def test_samples_by_name(name: str) -> None:
    assert is_candidate(Path(name))


@pytest.mark.parametrize("name", ["bg001.mat", "notes.mat", "mysample.mat", ".sample1.mat", "sample1.mat.part", "sample1.json"])
def test_others_by_name(name: str) -> None:
    assert not is_candidate(Path(name))


def test_each_kind_of_name_has_its_own_background_first() -> None:
    names = ["bg1_Tomog.mat", "BG2.mat", "sample1.mat", "bg1_Tomog.mat"]
    assert backgrounds_of_mat("sample1_Tomog.mat", names) == ["bg1_Tomog.mat"]
    assert backgrounds_of_mat("sample1.mat", names) == ["BG2.mat"]
    assert backgrounds_of_mat("sample1.mat", names[:1]) == ["bg1_Tomog.mat"]
    assert backgrounds_of_mat("sample1_tomog.MAT", names[1:3]) == ["BG2.mat"]


@pytest.mark.parametrize("name", ["sample001.mat", "session_sp.tif", "session_Tomog.mat", "a_sp.tif"])
def test_no_note_is_named_twice(name: str) -> None:
    sought = own_notes(name)
    assert len(sought) == len(set(sought))
    assert sought[-1] == "session.json"


def test_a_mat_file_that_is_no_session_says_what_it_is(alone: Path) -> None:
    scipy.io.savemat(alone, {"drymass": 3.0, "x": np.zeros((3, 3))})
    with pytest.raises(UnknownFormat, match="MATLAB file of drymass, x; a session's sample holds `tomogMap`"):
        load(alone)
    with h5py.File(alone, "w", userblock_size=512) as file:
        file["holograms"] = np.zeros(3)
    with alone.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM")
    with pytest.raises(UnknownFormat, match="MATLAB file of holograms; a session's sample holds `tomogMap`"):
        load(alone)


@pytest.mark.parametrize("data", [b"\x00" * 20 + b"tomogMap", b"# Created by Octave 8", b"MATLAB 5.0 MAT-file", b"PK\x03\x04"])
def test_what_is_no_mat_file_is_named(alone: Path, data: bytes) -> None:
    alone.write_bytes(data)
    with pytest.raises((UnknownFormat, Truncated)) as caught:
        load(alone)
    assert "-v7" in caught.value.advice or "save" in caught.value.advice.lower() or "Copy" in caught.value.advice


# --- hostile and damaged -----------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_header(alone: Path) -> None:
    head = array("<", b"tomogMap", np.zeros((0,), np.uint8), kind=9, stored=2, dims=(8192, 8192, 1024))[:-8]
    body = zlib.compressobj(9)
    bomb = body.compress(head + struct.pack("<II", 2, 2**32 - 1)) + b"".join(body.compress(bytes(1 << 20)) for _ in range(64))
    bomb += body.flush()
    v5(alone, *numbers(), element("<", 15, bomb, pad=False))
    with pytest.raises(TooLarge, match="declares 68719476736 bytes"):
        load(alone)


def test_a_stream_that_goes_on_behind_its_array_is_not_unpacked(alone: Path) -> None:
    plain = array("<", b"tomogMap", matlab(STACK.holograms), kind=9, stored=2)
    v5(alone, *numbers(), packed("<", plain + bytes(1 << 24)))
    with pytest.raises(CorruptContent, match="more than its header says"):
        load(alone)


def test_the_limit_is_on_what_is_unpacked(session: Path) -> None:
    with pytest.raises(TooLarge, match="declares 20480 bytes; the limit is 10000"):
        load(session, defaults=ReadDefaults(max_logical_bytes=10_000))


def test_a_flipped_bit_in_a_packed_variable_is_noticed(session: Path) -> None:
    whole = session.read_bytes()
    at = whole.index(zlib.compress(b"")[:2]) + 2000
    for bit in range(8):
        session.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(CorruptContent):
            load(session)


def test_every_cut_is_noticed(session: Path) -> None:
    whole = session.read_bytes()
    for size in [*range(0, 300, 7), len(whole) // 2, len(whole) - 1]:
        session.write_bytes(whole[:size])
        with pytest.raises((Truncated, CorruptContent, UnknownFormat, Incomplete, MissingField)):
            load(session)


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (np.ones((64, 64), np.uint8), BadField, r"uint8 \(64, 64\); allowed is whole grey values"),
        (np.ones((2, 2, 2, 2)), BadField, r"float64 \(2, 2, 2, 2\)"),
        (np.ones((64, 64, 5)) * 1j, Forbidden, "complex float64"),
        ({"a": 1}, (BadField, Forbidden), "a structure"),
        ("text", (BadField, Forbidden), "a text"),
        (scipy.sparse.eye(64).tocsc(), (BadField, Forbidden), "a sparse array"),
        (np.array([[np.array(["x"], object)]], object), (BadField, Forbidden), "a text|a cell array"),
    ],
)
def test_a_stack_of_another_kind_is_named(alone: Path, frames: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        load(save(alone, frames))


@pytest.mark.parametrize("value", [np.ones((2, 1)), "0.5", np.array([], float), {"a": 1}])
def test_a_number_that_is_none(alone: Path, value: Any) -> None:
    scipy.io.savemat(alone, {"tomogMap": matlab(STACK.holograms), **NUMBERS, "res": value})
    with pytest.raises((BadField, Forbidden), match="`res`"):
        load(alone)


def test_a_missing_number_is_named(alone: Path) -> None:
    scipy.io.savemat(alone, {"tomogMap": matlab(STACK.holograms), "NA": 1.2, "res": 0.06})
    with pytest.raises(MissingField, match="`lambda` is absent"):
        load(alone)


@pytest.mark.parametrize("kind", [3, 16, 17])
def test_objects_and_functions_are_refused_unread(alone: Path, kind: int) -> None:
    v5(alone, *numbers(), array("<", b"tomogMap", np.zeros((8, 8, 4), np.uint8), kind=kind, stored=2))
    with pytest.raises(Forbidden, match=r"an object|a function"):
        load(alone)


def test_cells_in_cells_are_not_followed(alone: Path) -> None:
    def cell(name: bytes) -> bytes:
        head = element("<", 6, struct.pack("<II", 1, 0)) + element("<", 5, struct.pack("<2i", 1, 1))
        return head + element("<", 1, name)

    inner = array("<", b"", np.zeros((8, 8), np.uint8), kind=9, stored=2)
    for _ in range(2000):
        inner = element("<", 14, cell(b"") + inner)
    v5(alone, *numbers(), packed("<", element("<", 14, cell(b"tomogMap") + inner)))
    with pytest.raises((BadField, Forbidden), match="a cell array"):
        load(alone)


def test_many_variables_are_too_many(alone: Path) -> None:
    one = array("<", b"a", np.array([[1]], np.uint8), kind=9, stored=2)
    v5(alone, *[one] * 10_001)
    with pytest.raises(TooLarge, match="10000 variables"):
        load(alone)


def test_any_bytes_end_in_an_error_with_a_name(session: Path) -> None:
    whole = session.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] = rng.integers(256)
        session.write_bytes(data)
        try:
            load(session)
        except InputError:
            continue


def test_the_names_of_all_variables(session: Path) -> None:
    with session.open("rb") as stream:
        assert MatFile(stream.fileno(), session, 1 << 30).names == ["tomogMap", "res", "NA", "lambda", "dateTimeVal"]


def test_notes_in_any_case_of_letters(session: Path) -> None:
    (session.parent / "SAMPLE007.JSON").write_text(json.dumps({"sample_id": "donor 1"}))
    (session.parent / "Session.Json").write_text(json.dumps({"sample_id": "donor 2", "medium_ri": 1.34}))
    ticket, stack = load(session)
    assert (ticket.sample_id, stack.optics.medium_ri) == ("donor 1", 1.34)
    (session.parent / "session.json").write_text(json.dumps({"medium_ri": 1.35}))
    assert load(session)[1].optics.medium_ri == 1.35  # the exact name goes before others
    (session.parent / "sample007.Json").write_text("{}")
    with pytest.raises(BadField, match=r"SAMPLE007\.JSON, sample007\.Json") as caught:
        load(session)
    assert "one" in caught.value.advice


def test_a_session_of_another_stem(tmp_path: Path) -> None:
    edit(write_mat(tmp_path / "sample1_Tomog.mat", STACK.holograms, OPTICS), lambda file: None)
    (tmp_path / "sample1.json").write_text('{"background": "none"}')
    assert load(tmp_path / "sample1_Tomog.mat")[1].reference is None
