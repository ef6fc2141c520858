"""Raw frames before any field: where the camera clips, whatever its bits, and stacks whose parts do not belong together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wbcd.errors import BadField
from wbcd.recipe import Recipe
from wbcd.reconstruction import measure_fringes, retrieve_fields
from wbcd.records import HologramStack, Optics

OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)
FRAMES, SIDE = 3, 192


def exposed(
    bits: int, exposure: float, *, electrons: float | None = 2000.0, shift: int = 0, clip: int | None = None
) -> NDArray[np.unsignedinteger]:
    """Fringes whose crests reach ``exposure`` of full scale, with shot noise; ``clip``: where the camera stops."""
    rng = np.random.default_rng(5)
    axis = np.arange(SIDE) * OPTICS.pixel_size_um
    top = 2**bits - 1
    frames = np.empty((FRAMES, SIDE, SIDE), np.uint8 if bits <= 8 else np.uint16)
    for i in range(FRAMES):
        phase = 2 * np.pi * ((5.03 + 0.5 * i) * axis[None, :] + 4.96 * axis[:, None])
        light = exposure * (1 + 0.9 * np.cos(phase)) / 1.9
        if electrons is not None:
            light = rng.poisson(light * electrons) / electrons
        frames[i] = np.clip(np.round(light * top), 0, top if clip is None else clip).astype(np.uint16) << shift
    return frames


def saturated(frames: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    return measure_fringes(HologramStack(frames, None, None, 0, OPTICS)).saturated_fraction


@pytest.mark.parametrize("electrons", [None, 2000.0, 10_000.0])
@pytest.mark.parametrize("exposure", [0.02, 0.1, 0.3, 0.6, 0.8])
@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (10, 0), (12, 0), (16, 0), (10, 6), (12, 4), (14, 2)])
def test_what_is_not_saturated_has_none(bits: int, shift: int, exposure: float, electrons: float | None) -> None:
    np.testing.assert_array_equal(saturated(exposed(bits, exposure, electrons=electrons, shift=shift)), 0.0)


@pytest.mark.parametrize("exposure", [1.1, 1.5, 3.0])
@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (12, 0), (10, 6), (12, 4), (14, 2), (8, 8)])
def test_bits_that_fill_the_word_from_the_top_saturate_at_their_own_full_scale(bits: int, shift: int, exposure: float) -> None:
    """12 bits shifted by four clip at 65520: a limit of 65535 saw none of them."""
    frames = exposed(bits, exposure).astype(np.uint16) << shift
    true = np.mean(frames == (2**bits - 1) << shift, axis=(1, 2))
    assert true.min() > 0.05
    np.testing.assert_array_equal(saturated(frames), true)


@pytest.mark.parametrize(("bits", "clip"), [(8, 200), (8, 240), (10, 1000), (12, 3800), (16, 60_000)])
@pytest.mark.parametrize("exposure", [1.1, 2.0])
def test_a_camera_that_clips_below_full_scale_is_found_by_the_pile(bits: int, clip: int, exposure: float) -> None:
    frames = exposed(bits, exposure, clip=clip)
    np.testing.assert_array_equal(saturated(frames), np.mean(frames == clip, axis=(1, 2)))


def test_one_clipped_frame_is_told_from_the_others_and_a_lost_one_is_none() -> None:
    frames = exposed(12, 0.6)
    frames[1] = exposed(12, 2.0, clip=3800)[1]
    frames[2] = 3800
    found = saturated(frames)
    assert found[0] == 0.0
    assert found[1] > 0.3


# --- stacks whose parts do not belong together -------------------------------------------------------

SOUND = HologramStack(exposed(8, 0.6), exposed(8, 0.6), None, 0, OPTICS)
VECTORS = np.array([[0.0, 0.0], [3.0, 1.0], [6.0, 2.0]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"holograms": SOUND.holograms[0]}, r"holograms: shape \(192, 192\)"),
        ({"holograms": SOUND.holograms[:0]}, r"holograms: shape \(0, 192, 192\)"),
        ({"normal_frame": 99}, r"normal_frame: 99; it must lie in 0\.\.2"),
        ({"normal_frame": -1}, r"normal_frame: -1; it must lie in 0\.\.2"),
        ({"reference": SOUND.holograms[:2]}, r"reference: shape \(2, 192, 192\).*\(3, 192, 192\)"),
        ({"reference": SOUND.holograms[:, :160, :160]}, r"reference: shape \(3, 160, 160\).*\(3, 192, 192\)"),
        ({"illumination_rad_um": VECTORS[:2]}, r"illumination_rad_um: shape \(2, 2\).*\(3, 2\)"),
        ({"illumination_rad_um": VECTORS.T}, r"illumination_rad_um: shape \(2, 3\).*\(3, 2\)"),
        ({"illumination_rad_um": np.where(VECTORS == 3.0, np.nan, VECTORS)}, r"illumination_rad_um: .*nan.* at frame 1"),
    ],
)
def test_a_stack_whose_parts_do_not_belong_together_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(BadField, match=told):
        retrieve_fields(replace(SOUND, **change), Recipe())
    with pytest.raises(BadField, match=told):
        measure_fringes(replace(SOUND, **change))


def test_a_report_of_other_frames_is_named() -> None:
    fewer = measure_fringes(replace(SOUND, holograms=SOUND.holograms[:2], reference=SOUND.holograms[:2]))
    with pytest.raises(BadField, match="fringes: a report of 2 frames; it must be of the stack's 3"):
        retrieve_fields(SOUND, Recipe(), fringes=fewer)
