"""`wbcd simulate --format tiff|mat`: the same light as wbcd's own format, in the rigs' layouts, read back by the readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wbcd.acquisition import identify, is_candidate, read
from wbcd.errors import BadValue
from wbcd.reconstruction import find_axis
from wbcd.records import Axis, HologramStack, SourceFormat
from wbcd.simulation.microscope import Format, simulate


def first(folder: Path, form: Format) -> tuple[SourceFormat | None, str, HologramStack]:
    (made,) = simulate(folder / form, 1, 3, format=form, sample="donor 9")
    assert [path for path in (folder / form).iterdir() if is_candidate(path)] == [made.path]
    ticket, stack = read(identify(made.path))
    assert isinstance(stack, HologramStack)
    return ticket.format, ticket.sample_id, stack


def test_the_rigs_layouts_hold_the_same_frames(tmp_path: Path) -> None:
    _, _, plain = first(tmp_path, "hologram")
    form, sample, tiff = first(tmp_path, "tiff")
    assert (form, sample) == (SourceFormat.TIFF_PAIR, "donor 9")
    assert (tiff.optics, tiff.normal_frame) == (plain.optics, plain.normal_frame)
    np.testing.assert_array_equal(tiff.holograms, plain.holograms)
    assert tiff.reference is not None
    assert plain.reference is not None
    np.testing.assert_array_equal(tiff.reference, plain.reference)
    form, _, mat = first(tmp_path, "mat")
    assert (form, mat.normal_frame, mat.optics) == (SourceFormat.MATLAB, None, plain.optics)
    assert find_axis(mat) == Axis(48, uncertainty_na=0.0)
    np.testing.assert_array_equal(mat.holograms, np.concatenate([plain.holograms[1:], plain.holograms[:1]]))


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="hologram, tcf, tiff, mat"):
        simulate(tmp_path / "a", 1, 3, format="png")  # type: ignore[arg-type]
