"""Cut anywhere, flip any bit: an InputError or the untouched truth, never anything else."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_acquisition import holograms, load, ri_volume, tcf_file, wbcd_file
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wbcd.errors import CorruptContent, Incomplete, InputError, Truncated
from wbcd.records import HologramStack

few = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        "h5": wbcd_file(folder / "a.h5", holograms(reference=True)),
        "float": tcf_file(folder / "f.TCF", version="1.2"),
        "uint16": tcf_file(folder / "u.TCF", version="1.3"),
        "tiled": tcf_file(folder / "t.TCF", version="1.6", tile_shape=(12, 20, 20), overlap=2),
    }


@few
@given(kind=st.sampled_from(["h5", "float", "uint16", "tiled"]), share=st.floats(0, 1, exclude_max=True))
@example(kind="h5", share=0.0)
def test_truncated_anywhere(whole, tmp_path, kind, share):
    content = whole[kind].read_bytes()
    path = tmp_path / whole[kind].name
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises((Truncated, Incomplete), match=path.name):
        load(path)


@few
@given(share=st.floats(0, 1, exclude_max=True))
def test_preallocated_and_cut_short_with_zeros(whole, tmp_path, share):
    """A copy that stopped in a preallocated file: right size, zero tail. HDF5 alone opens it and returns zeros."""
    content = whole["h5"].read_bytes()
    keep = int(share * len(content))
    path = tmp_path / "a.h5"
    path.write_bytes(content[:keep].ljust(len(content), b"\0"))
    try:
        _, stack = load(path)
    except InputError:
        return
    same_as(stack, holograms(reference=True))


def test_a_blank_heap_is_refused_and_not_read_for_ever(whole, tmp_path):
    """libhdf5 2.0 never returns from a global heap whose tail is zeros; found by the property above."""
    content = whole["h5"].read_bytes()
    heap = content.index(b"GCOL")
    path = tmp_path / "a.h5"
    path.write_bytes(content[: heap + 64].ljust(len(content), b"\0"))
    with pytest.raises(InputError, match=r"a\.h5"):
        load(path)


@few
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_hologram_file_is_never_a_wrong_frame(whole, tmp_path, place, bit):
    content = bytearray(whole["h5"].read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    try:
        _, stack = load(path)
    except InputError:
        return
    same_as(stack, holograms(reference=True))


@few
@given(kind=st.sampled_from(["float", "uint16", "tiled"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_tcf_never_raises_a_foreign_error(whole, tmp_path, kind, place, bit):
    content = bytearray(whole[kind].read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path = tmp_path / whole[kind].name
    path.write_bytes(content)
    try:
        _, (tomogram,) = load(path)
    except InputError:
        return
    # The vendor's files carry no checksums, but compressed ones end in Adler-32: what unpacks is what was packed. Where a tile
    # lies is told by attributes, which nothing protects.
    assert tomogram.ri.shape == ri_volume().shape
    if kind != "tiled":
        np.testing.assert_allclose(tomogram.ri, ri_volume(), atol=1e-6)


@few
@given(data=st.binary(max_size=400), suffix=st.sampled_from(["h5", "TCF", "hdf5"]), signed=st.booleans())
def test_random_bytes(tmp_path, data, suffix, signed):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * signed + data)
    with pytest.raises(InputError, match=path.name):
        load(path)


def same_as(stack: HologramStack, truth: HologramStack) -> None:
    np.testing.assert_array_equal(stack.holograms, truth.holograms)
    if stack.reference is not None:
        np.testing.assert_array_equal(stack.reference, truth.reference)


def test_zero_tail_without_checksums_is_refused(tmp_path):
    """Contiguous and plain: only the demand for light in every frame notices."""
    path = wbcd_file(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["holograms"]
        data = file.create_dataset("holograms", data=holograms(angles=16).holograms)
        offset = data.id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 10 * 64 * 64 : offset + 16 * 64 * 64] = bytes(6 * 64 * 64)
    path.write_bytes(content)
    with pytest.raises(CorruptContent, match="6 frames of nothing but zeros, the first at index 10"):
        load(path)
