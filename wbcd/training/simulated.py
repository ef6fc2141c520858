"""One simulated cell: a phantom, as its donor's body makes it, through the optics and found again in its tomogram.

A donor has its own means: cells of one donor are a little larger or denser than those of another, and each donor is one
session of the microscope, so that a donor-wise split measures something.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.reconstruction import reconstruct, retrieve_fields
from wbcd.records import Cell, Optics, Tomogram, Triple
from wbcd.simulation.cells import RI_INCREMENT_ML_G, Phantom, sample_phantom
from wbcd.simulation.fast import FastOptics, half_resolution
from wbcd.simulation.microscope import Camera, Microscope, Specimen, rendered
from wbcd.simulation.optics import INSTRUMENT, RING

DONOR_VOLUME, DONOR_DENSITY, DONOR_GRANULARITY = 0.05, 0.01, 0.12
"""Standard deviations, relative, of a donor's means about the population's: volume, density, strength of the texture."""
MEDIUM_SD = 5e-4
"""Of the RI of the medium, from one donor's preparation to the next; the instrument is told the usual one."""
DONOR_SD = {"volume": DONOR_VOLUME, "density": DONOR_DENSITY, "granularity": DONOR_GRANULARITY, "medium_ri": MEDIUM_SD}
FOCUS_SD_UM, PLACE_UM = 0.3, 0.2
"""How far off the middle a cell comes to lie in its window: along z (what refocusing leaves), and at most across."""
SESSIONS_KEPT = 48
"""Microscopes of a process, 16 MB each: their sample-free references are not made again for every cell."""

PATHS = ("fast", "exact")
"""Those on which there is an instrument."""
OpticsPath: TypeAlias = Literal["fast", "exact", "ideal"]


@dataclass(frozen=True, slots=True)
class Setup:
    """How an instrument departs from the usual one (:data:`wbcd.simulation.optics.INSTRUMENT`).

    ``pitch_um``: lateral pitch of the tomograms, None for the path's own; ``light``: factor on the electrons a pixel, whose
    root is the signal over the noise.
    """

    objective_na: float = INSTRUMENT.objective_na
    wavelength_um: float = INSTRUMENT.wavelength_um
    pitch_um: float | None = None
    light: float = 1.0

    @property
    def optics(self) -> Optics:
        """Of this instrument."""
        return replace(INSTRUMENT, objective_na=self.objective_na, wavelength_um=self.wavelength_um)


USUAL = Setup()


@dataclass(frozen=True, slots=True)
class Seen:
    """A cell and the complex phase [y, x] of its normally lit frame, whose middle pixel is the origin of the cell's centre."""

    cell: Cell
    psi: NDArray[np.complex64]
    pixel_um: tuple[float, float]


def simulate_cell(
    kind: str, donor: int, draw: np.random.SeedSequence, *, path: OpticsPath = "fast", setup: Setup = USUAL
) -> Cell | Seen | None:
    """One simulated cell through the optics, found again in its tomogram; None when none, or a cut one, is found."""
    rng = np.random.default_rng(draw)
    phantom = of_donor(sample_phantom(kind, rng), donor)
    if path == "exact":
        return largest_cell(through_holograms(rendered(phantom, place_of(rng)), donor, rng, setup))
    optics = _fast_optics(donor, setup)
    y, x = (float(v) for v in rng.uniform(-PLACE_UM, PLACE_UM, 2))
    place = (float(rng.normal(0, FOCUS_SD_UM)), y, x)
    if path == "ideal":
        return largest_cell(optics.ideal(phantom, offset_um=place))
    tomogram, psi = optics.phantom_and_phase(phantom, rng, offset_um=place)
    cell = largest_cell(tomogram)
    if cell is None:
        return None
    return Seen(cell, psi, (optics.voxel_um[1], optics.voxel_um[2]))


def phantom_of(kind: str, donor: int, seed: int, index: int, attempt: int = 0, first_donor: int = 0) -> Phantom:
    """The phantom behind cell ``index`` of a set made with ``seed`` and ``first_donor``; ``attempt`` counts those in which no
    cell was found."""
    return of_donor(sample_phantom(kind, np.random.default_rng(draw_of(seed, index, attempt, first_donor))), donor)


def draw_of(seed: int, index: int, attempt: int, first_donor: int) -> np.random.SeedSequence:
    """What cell ``index`` of a set is drawn from."""
    # Other people have other cells, though the seed be the same.
    return np.random.SeedSequence(seed, spawn_key=(0, index, attempt, *([first_donor] if first_donor else [])))


def of_donor(phantom: Phantom, donor: int) -> Phantom:
    """The phantom as this donor's body makes it and as it shows in this donor's medium.

    Volume, density and texture are scaled by the donor's own factors. The instrument takes the usual medium for granted,
    so a medium of higher RI takes its difference off every contrast: n - n_m = alpha C - delta.
    """
    rng = np.random.default_rng(np.random.SeedSequence(donor, spawn_key=(3,)))
    volume, density, granularity, medium = rng.standard_normal(4)
    shown = phantom.density_g_dl * math.exp(DONOR_DENSITY * density) - 100 * MEDIUM_SD * medium / RI_INCREMENT_ML_G
    return replace(
        phantom,
        volume_fl=phantom.volume_fl * math.exp(DONOR_VOLUME * volume),
        density_g_dl=shown,
        granularity=phantom.granularity * math.exp(DONOR_GRANULARITY * granularity),
    )


def largest_cell(tomogram: Tomogram | None, *, cut: bool = False) -> Cell | None:
    """The largest object found in a tomogram, None where there is none; ``cut``: also what reaches the border."""
    found = [] if tomogram is None else find_cells(tomogram, Recipe())
    whole = [cell for cell in found if cut or not cell.touches_border]
    return max(whole, key=lambda cell: int(cell.mask.sum()), default=None)


def _fast_optics(session: int, setup: Setup) -> FastOptics:
    optics = half_resolution(session=session)
    if setup == USUAL:
        return optics
    # As in the microscope: the light comes through an aperture a little smaller than the objective's.
    na = min(optics.illumination_na, RING * setup.objective_na)
    optics = replace(optics, optics=setup.optics, illumination_na=na, electrons=optics.electrons * setup.light)
    if setup.pitch_um is None:
        return optics
    dz, usual, _ = optics.voxel_um
    across = _pixels(optics.shape[1] * usual, setup.pitch_um)
    return replace(optics, voxel_um=(dz, setup.pitch_um, setup.pitch_um), shape=(optics.shape[0], across, across))


def through_holograms(specimen: Specimen, session: int, rng: np.random.Generator, setup: Setup = USUAL) -> Tomogram | None:
    """What stands in the field of view as holograms and the whole reconstruction show it; None where nothing is seen there."""
    recipe = _recipe(setup.pitch_um)
    stack = _microscope(session, setup).acquire([specimen], rng)
    return next(iter(reconstruct(retrieve_fields(stack, recipe), recipe)), None)


def _recipe(pitch_um: float | None) -> Recipe:
    recipe = Recipe()
    if pitch_um is None:
        return recipe
    (dz, usual, _), (nz, ny, _) = recipe.reconstruction.voxel_um, recipe.reconstruction.shape
    across = _pixels(ny * usual, pitch_um)
    settings = replace(recipe.reconstruction, voxel_um=(dz, pitch_um, pitch_um), shape=(nz, across, across))
    return replace(recipe, reconstruction=settings)


def _pixels(field_um: float, pitch_um: float) -> int:
    """An even number of pixels that spans the field."""
    return 2 * math.ceil(field_um / pitch_um / 2)


def place_of(rng: np.random.Generator) -> Triple:
    """Off the middle and out of focus by as much as the simulated microscope's own files are: (z, y, x) in um."""
    z = float(np.clip(rng.normal(0, 0.8), -2, 2))
    y, x = (float(v) for v in rng.uniform(-2.5, 2.5, 2))
    return z, y, x


@functools.lru_cache(maxsize=SESSIONS_KEPT)
def _microscope(session: int, setup: Setup) -> Microscope:
    usual = Camera()
    return Microscope(session, optics=setup.optics, camera=replace(usual, full_well=usual.full_well * setup.light))
