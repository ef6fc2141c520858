"""Files made to do harm, through the isolated reader: refused by name, nothing outside read, memory bounded, reader alive."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_acquisition import edit, holograms, load, ri_volume, tcf_file, wbcd_file
from helpers_fuzz import _without_protection

from wbcd.acquisition import IsolatedReader, identify
from wbcd.acquisition.seal import seal_of
from wbcd.errors import BadField, CorruptContent, Forbidden, Incomplete, InputError, NotARegularFile, TooLarge
from wbcd.records import RiSeries
from wbcd.simulation.files import write_ome_zarr_ri

SECRET = np.full((12, 40, 44), 1.39, np.float32)
MOST_MB = 700


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedReader]:
    with IsolatedReader(root=tmp_path_factory.getbasetemp()) as shared:
        yield shared


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the watch folder whose content would be taken for a volume or for holograms."""
    path = tmp_path / "outside.h5"
    with h5py.File(path, "w") as file:
        file["Data/3D/000000"] = SECRET
        file["holograms"] = holograms().holograms
    return path


def everything(reader: IsolatedReader, path: Path) -> None:
    _, payload = reader.read(identify(path))
    if isinstance(payload, RiSeries):
        list(payload)


def refusal(reader: IsolatedReader, path: Path) -> InputError:
    """The error of reading it all; the reader has lived on and has taken no more memory than a small file needs."""
    before = reader.restarts
    with pytest.raises(InputError) as caught:
        everything(reader, path)
    assert path.name in caught.value.message or "isolated reader" in caught.value.message
    assert reader.restarts in (before, 0)
    peak = next(line for line in Path(f"/proc/{reader._child.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < MOST_MB * 1024
    return caught.value


Change = Callable[[h5py.File, str, Path], None]


def soft_link(file: h5py.File, name: str, outside: Path) -> None:
    file.move(name, "/moved")
    file[name] = h5py.SoftLink("/moved")


def external_link(file: h5py.File, name: str, outside: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(outside), name)


def external_storage(file: h5py.File, name: str, outside: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, kind, external=[(str(outside), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str, outside: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(str(outside), name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def unknown_filter(file: h5py.File, name: str, outside: Path) -> None:
    values = np.zeros(file[name].shape, np.int32)
    del file[name]
    file.create_dataset(name, data=values, scaleoffset=4)


def named_type(file: h5py.File, name: str, outside: Path) -> None:
    del file[name]
    file[name] = h5py.vlen_dtype(np.dtype("f8"))


def texts(file: h5py.File, name: str, outside: Path) -> None:
    del file[name]
    file.create_dataset(name, data=np.array(["x" * 10**6] * 8, dtype=object), dtype=h5py.string_dtype())


def references(file: h5py.File, name: str, outside: Path) -> None:
    del file[name]
    file.create_dataset(name, data=np.array([[[file.ref] * 4] * 4] * 4, dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


def itself(file: h5py.File, name: str, outside: Path) -> None:
    """A group where the data belong, which holds the root again."""
    del file[name]
    file.create_group(name)["again"] = file["/"]


def petabytes(file: h5py.File, name: str, outside: Path) -> None:
    del file[name]
    file.create_dataset(name, (2**16, 2**17, 2**17), np.uint16, chunks=(1, 64, 64))


def bomb(file: h5py.File, name: str, outside: Path) -> None:
    """4 MB on disk that unpack to 4.3 GB, in a data set that says of itself that it is small."""
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    data = file.create_dataset(name, shape, kind, chunks=(1, *shape[1:]), compression="gzip")
    squeezer = zlib.compressobj(9)
    megabyte = bytes(2**20)
    packed = b"".join(squeezer.compress(megabyte) for _ in range(512)) + squeezer.flush()
    for index in range(shape[0]):
        data.id.write_direct_chunk((index, *[0] * (len(shape) - 1)), packed)


def skipped_filter(file: h5py.File, name: str, outside: Path) -> None:
    """One chunk says that it was not shuffled: it would unpack, checksum and all, to other values."""
    values = file[name][()]
    del file[name]
    layout: dict[str, Any] = {"chunks": (1, *values.shape[1:]), "compression": "gzip", "shuffle": True}
    whole = file.create_dataset("/whole", data=values, **layout)
    data = file.create_dataset(name, values.shape, values.dtype, **layout)
    for index in range(len(values)):
        place = (index, *[0] * (values.ndim - 1))
        data.id.write_direct_chunk(place, whole.id.read_direct_chunk(place)[1], filter_mask=int(index == 0))
    del file["/whole"]


HOSTILE: list[tuple[Change, type[InputError], str]] = [
    (soft_link, Forbidden, "soft link"),
    (external_link, Forbidden, "external link"),
    (external_storage, Forbidden, "external storage"),
    (virtual, Forbidden, "virtual data set"),
    (unknown_filter, Forbidden, "filter"),
    (named_type, BadField, "neither a group nor a data set"),
    (texts, BadField, "type"),
    (references, BadField, "type"),
    (itself, InputError, ""),
    (petabytes, TooLarge, "bytes"),
    (bomb, CorruptContent, "larger than"),
    (skipped_filter, CorruptContent, "skip their filters"),
]


@pytest.mark.parametrize("kind", ["h5", "tcf"])
@pytest.mark.parametrize(("change", "error", "words"), HOSTILE, ids=[change.__name__ for change, *_ in HOSTILE])
def test_hostile_hdf5(
    reader: IsolatedReader, tmp_path: Path, outside: Path, kind: str, change: Change, error: type[InputError], words: str
) -> None:
    if kind == "h5":
        path, name = wbcd_file(tmp_path / "w" / "a.h5", holograms(dtype=np.uint16)), "holograms"
    else:
        path, name = tcf_file(tmp_path / "w" / "a.TCF"), "Data/3D/000000"
    edit(path, lambda file: change(file, name, outside))
    if change is bomb:
        assert path.stat().st_size < 30 * 2**20
    found = refusal(reader, path)
    assert isinstance(found, error)
    assert words in found.message


@pytest.mark.parametrize("place", ["Data", "Data/3D", "Info", "Info/Device"])
@pytest.mark.parametrize("change", [soft_link, external_link])
def test_links_at_every_step_of_a_tcf(
    reader: IsolatedReader, tmp_path: Path, outside: Path, place: str, change: Change
) -> None:
    path = edit(tcf_file(tmp_path / "w" / "a.TCF"), lambda file: change(file, place, outside))
    assert isinstance(refusal(reader, path), Forbidden)


@pytest.mark.parametrize("name", ["ResolutionX", "SizeZ", "DataCount"])
@pytest.mark.parametrize("what", ["object", "region", "compound", "empty", "long text", "nul text"])
def test_attributes_that_are_no_numbers(reader: IsolatedReader, tmp_path: Path, name: str, what: str) -> None:
    def change(file: h5py.File) -> None:
        node = file["Data/3D"]
        del node.attrs[name]
        values: dict[str, Any] = {
            "compound": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
            "empty": h5py.Empty("f8"),
            "long text": "9" * 50_000,
            "nul text": np.bytes_(b"\0\x01\xff"),
        }
        if what == "object":
            node.attrs.create(name, file["/"].ref, dtype=h5py.ref_dtype)
        elif what == "region":
            node.attrs.create(name, file["Data/3D/000000"].regionref[:1], dtype=h5py.regionref_dtype)
        else:
            node.attrs[name] = values[what]

    refused = refusal(reader, edit(tcf_file(tmp_path / "w" / "a.TCF"), change))
    assert isinstance(refused, BadField)
    assert name in refused.message


def test_a_tiny_file_declaring_four_petabytes(reader: IsolatedReader, tmp_path: Path) -> None:
    path = wbcd_file(tmp_path / "w" / "a.h5")
    edit(path, lambda file: petabytes(file, "holograms", path))
    small = path.with_name("b.h5")
    with h5py.File(path, "r") as source, h5py.File(small, "w") as target:
        target.attrs.update(source.attrs)
        target.create_dataset("holograms", (2**10, 2**21, 2**21), np.uint8, chunks=(1, 64, 64))
    assert small.stat().st_size < 8000
    assert isinstance(refusal(reader, small), TooLarge)


def test_a_chunk_index_that_shows_one_chunk_twice(reader: IsolatedReader, tmp_path: Path) -> None:
    """Address of a chunk in an old B-tree set to another's: every checksum holds, one plane is shown twice."""
    path = wbcd_file(tmp_path / "w" / "a.h5", holograms(angles=8))
    with h5py.File(path, "r") as file:
        frames = file["holograms"][()]
        held = dict(file.attrs)
    held.pop("seal")
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("holograms", data=frames, chunks=(1, 64, 64), fletcher32=True)
        file.attrs.update(held)
        places: list[int] = []
        file["holograms"].id.chunk_iter(lambda chunk: places.append(chunk.byte_offset))
    assert (load(path)[1].holograms == frames).all()
    content = path.read_bytes()
    second, third = (place.to_bytes(8, "little") for place in places[1:3])
    assert content.count(third) == 1
    path.write_bytes(content.replace(third, second))
    with h5py.File(path, "r") as file:  # HDF5 itself has no complaint
        assert (file["holograms"][2] == frames[1]).all()
    refused = refusal(reader, path)
    assert isinstance(refused, CorruptContent)
    assert "1 chunks overlap" in refused.message


def test_an_incompressible_chunk_left_unpacked_by_its_writer_is_read(tmp_path: Path) -> None:
    path = tcf_file(tmp_path / "a.TCF")
    values = (ri_volume() * 1e4).round().astype("<u2")

    def change(file: h5py.File) -> None:
        node = file["Data/3D/000000"]
        shuffled = values[0].tobytes()
        mixed = np.frombuffer(shuffled, np.uint8).reshape(-1, 2).T.tobytes()  # shuffle ran, deflate did not
        node.id.write_direct_chunk((0, 0, 0), mixed, filter_mask=2)

    ticket, (tomogram,) = load(edit(path, change))
    np.testing.assert_array_equal(tomogram.ri, ri_volume())
    assert "values" in ticket.unprotected  # one chunk has lost its Adler-32


# --- the seal ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.__setitem__("pixel_size_um", 0.07),
        lambda file: file.attrs.__setitem__("wavelength_um", 0.633),
        lambda file: file.attrs.__setitem__("acquired_at", "2024-05-06T07:08:10+02:00"),
        lambda file: file.attrs.__setitem__("reference_file", "r.wbcdref"),
        lambda file: file["holograms"].__setitem__((0, 0, 0), 7),
        lambda file: file["reference"].__setitem__((1, 2, 3), 7),
        lambda file: file.create_dataset("illumination", data=np.zeros((4, 2))),
        lambda file: file.attrs.__setitem__("seal", "0" * 40),
        lambda file: file.attrs.__setitem__("seal", "../../etc"),
    ],
)
def test_what_was_changed_after_the_seal_is_refused(reader: IsolatedReader, tmp_path: Path, change: Any) -> None:
    path = wbcd_file(tmp_path / "w" / "a.h5", holograms(reference=True))
    assert load(path)[0].unprotected == ()
    with h5py.File(path, "r+") as file:
        change(file)
    refused = refusal(reader, path)
    assert isinstance(refused, CorruptContent)
    assert "seal" in refused.message


@pytest.mark.parametrize(("kind", "frames"), [("<f4", "u1"), (">f8", ">u2")])
def test_a_seal_holds_for_every_type_that_is_read(tmp_path: Path, kind: str, frames: str) -> None:
    path = wbcd_file(tmp_path / "a.h5")
    values, directions = holograms().holograms.astype(frames), np.full((4, 2), 0.25, kind)
    with h5py.File(path, "r+") as file:
        del file["holograms"]
        file["holograms"], file["illumination"] = values, directions
        file.attrs["seal"] = seal_of(dict(file.attrs), {"holograms": values, "illumination": directions})
    assert load(path)[0].unprotected == ()


def test_what_a_file_does_not_protect_is_told(tmp_path: Path) -> None:
    stack = holograms(reference=True)
    sealed = wbcd_file(tmp_path / "a.h5", stack)
    unsealed = edit(wbcd_file(tmp_path / "b.h5", stack), lambda file: None)
    plain = wbcd_file(tmp_path / "c.h5", stack)
    _without_protection(plain, ["holograms", "reference"], seal=False)
    raw = tcf_file(tmp_path / "raw.TCF")
    _without_protection(raw, ["Data/3D/000000"])
    packed = tcf_file(tmp_path / "packed.TCF")
    zarr = write_ome_zarr_ri(tmp_path / "a.zarr", ri_volume(), (0.2, 0.1, 0.1))
    found = {path.name: load(path)[0].unprotected for path in (sealed, unsealed, plain, raw, packed, zarr)}
    assert found == {
        "a.h5": (),
        "b.h5": ("seal",),
        "c.h5": ("scale", "values", "seal"),
        "raw.TCF": ("scale", "values", "seal"),
        "packed.TCF": ("scale", "seal"),
        "a.zarr": ("scale", "values", "seal"),
    }


# --- OME-Zarr ------------------------------------------------------------------------------------


@pytest.fixture
def zarr(tmp_path: Path) -> Path:
    return write_ome_zarr_ri(tmp_path / "w" / "a.zarr", ri_volume(), (0.2, 0.1, 0.1))


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def chunk_shape(value: dict[str, Any], shape: list[int]) -> None:
    value["chunk_grid"]["configuration"]["chunk_shape"] = shape


def sharded(value: dict[str, Any], inner: Any) -> None:
    options = {"chunk_shape": inner, "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
    value["codecs"] = [{"name": "sharding_indexed", "configuration": options}]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda v: v.update(codecs=[{"name": "numcodecs.pickle"}]), Forbidden, "codec"),
        (
            lambda v: v.update(codecs=[{"name": "bytes", "configuration": {"codecs": [{"name": "vlen-utf8"}]}}]),
            Forbidden,
            "codec",
        ),
        (lambda v: v.update(codecs=7), BadField, "list"),
        (lambda v: v.update(codecs=[["bytes"]]), Forbidden, "codec"),
        (lambda v: v.update(storage_transformers=[{"name": "evil"}]), Forbidden, "codec"),
        (lambda v: v.update(data_type="object"), BadField, "type"),
        (lambda v: v.update(shape=[2**20, 2**20, 2**20]), TooLarge, "bytes"),
        (lambda v: v.update(shape=[10**30, 10**30, 10**30]), TooLarge, "bytes"),
        (lambda v: chunk_shape(v, [2**20, 2**20, 2**20]), TooLarge, "chunks of"),
        (lambda v: chunk_shape(v, [0, 1, 1]), BadField, "chunk_shape"),
        (lambda v: sharded(v, [1, 1]), BadField, "chunk_shape"),
        (lambda v: sharded(v, "x"), BadField, "chunk_shape"),
        (
            lambda v: v.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}),
            BadField,
            "separator",
        ),
        (lambda v: v.update(chunk_key_encoding={"name": "default", "configuration": []}), BadField, "configuration"),
    ],
)
def test_hostile_array_metadata(
    reader: IsolatedReader, zarr: Path, change: Callable[[dict[str, Any]], object], error: type[InputError], words: str
) -> None:
    rewrite(zarr / "0" / "zarr.json", change)
    refused = refusal(reader, zarr)
    assert isinstance(refused, error), refused
    assert words in refused.message


@pytest.mark.parametrize("value", ["../outside", "/etc", "0/../../x", "..", "n" * 300, "a\0b", "0//x", ""])
def test_paths_that_leave_the_image(reader: IsolatedReader, zarr: Path, value: str) -> None:
    rewrite(zarr / "zarr.json", lambda v: v["attributes"]["ome"]["multiscales"][0]["datasets"][0].update(path=value))
    assert isinstance(refusal(reader, zarr), InputError)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, '{"attributes": 1' + "0" * 5000 + "}", "1" * 10**6, '"\\ud800"']
)
@pytest.mark.parametrize("place", ["zarr.json", "0/zarr.json"])
def test_json_made_to_exhaust_the_parser(reader: IsolatedReader, zarr: Path, text: str, place: str) -> None:
    (zarr / place).write_text(text)
    assert isinstance(refusal(reader, zarr), CorruptContent | BadField)


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e999])
def test_numbers_beyond_floats(reader: IsolatedReader, zarr: Path, number: float) -> None:
    def change(value: dict[str, Any]) -> None:
        value["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [number] * 3

    rewrite(zarr / "zarr.json", change)
    assert isinstance(refusal(reader, zarr), BadField)


def test_a_chunk_that_unpacks_to_far_more_than_the_array(reader: IsolatedReader, zarr: Path) -> None:
    rewrite(
        zarr / "0" / "zarr.json",
        lambda v: v.update(codecs=[{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 9}}]),
    )
    chunk = next(path for path in (zarr / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(gzip.compress(bytes(256 * 2**20), 9) * 8)  # members follow one another: 2 GiB in 2 MB
    refused = refusal(reader, zarr)
    assert isinstance(refused, TooLarge)
    assert "a chunk here has at most" in refused.message or "a chunk of this array has at most" in refused.message


@pytest.mark.parametrize("way", ["link", "linked folder", "fifo", "socket"])
def test_members_that_are_no_files(reader: IsolatedReader, zarr: Path, outside: Path, way: str) -> None:
    chunk = next(path for path in (zarr / "0" / "c").rglob("*") if path.is_file())
    if way == "linked folder":
        shutil.move(zarr / "0", outside.parent / "moved")
        (zarr / "0").symlink_to(outside.parent / "moved")
    else:
        chunk.unlink()
        if way == "link":
            chunk.symlink_to(outside)
        elif way == "fifo":
            os.mkfifo(chunk)
        else:
            import socket

            here = socket.socket(socket.AF_UNIX)
            os.chdir(chunk.parent)  # a socket's name is short
            try:
                here.bind(chunk.name)
            finally:
                os.chdir("/")
            here.close()
    assert isinstance(refusal(reader, zarr), NotARegularFile)


def test_metadata_swapped_between_judging_and_reading_reach_nobody(zarr: Path) -> None:
    """zarr is given the bytes that were judged; what lies in the folder by then does not matter."""
    from wbcd.acquisition.limits import ReadDefaults
    from wbcd.acquisition.omezarr import read_zarr_header, read_zarr_volume
    from wbcd.acquisition.source import Source

    source = Source(identify(zarr))
    _, header = read_zarr_header(source, ReadDefaults())
    rewrite(zarr / "0" / "zarr.json", lambda v: v.update(codecs=[{"name": "numcodecs.pickle"}], fill_value=1.5))
    np.testing.assert_array_equal(read_zarr_volume(source, header, 0).ri, ri_volume())


def test_a_folder_of_too_many_files_is_not_counted_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wbcd.acquisition import candidate

    monkeypatch.setattr(candidate, "MAX_FOLDER_FILES", 50)
    folder = tmp_path / "a.zarr"
    for index in range(80):
        (folder / f"{index // 10}").mkdir(parents=True, exist_ok=True)
        (folder / f"{index // 10}" / f"{index}").touch()
    with pytest.raises(TooLarge, match="more than 50 files"):
        identify(folder)
    state = candidate.stat_candidate(folder)
    assert state is not None
    assert state.entries == 51


def test_an_empty_or_half_made_folder(reader: IsolatedReader, tmp_path: Path) -> None:
    (tmp_path / "w" / "a.zarr").mkdir(parents=True)
    assert isinstance(refusal(reader, tmp_path / "w" / "a.zarr"), Incomplete)
