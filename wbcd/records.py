"""What flows through the line: frozen records, units in their names, arrays by reference.

    Acquisition -> HologramStack -> FieldStack -> Tomogram -> Cell -> Morphology -> Prediction
                                                  ^ an input that is RI already enters here

and the single :class:`Outcome` that the store receives for each acquisition.
Axis order is always (z, y, x); angles come first in stacks. The time convention is exp(-i w t), so a
denser object has a positive phase delay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from wbcd.errors import WbcdError

if TYPE_CHECKING:  # `wbcd status` and `wbcd --help` must answer without importing numpy
    import numpy as np
    from numpy.typing import NDArray

NAME = re.compile(r"(?!(?i:unclassified)\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a class or a model may be called: it stands in flags, file names and metrics. The counts have the one word that is
excepted for cells of no class."""
NAME_RULE = "letters, digits, dot, dash and underscore, at most 64, the first a letter or a digit, and not 'unclassified'"

LINEAGES = ("lymphoid", "myeloid")
LINEAGE: Mapping[str, str] = {
    **dict.fromkeys(("b_lymphocyte", "t_lymphocyte", "nk_lymphocyte", "nk_cell", "plasma_cell", "lymphocyte"), LINEAGES[0]),
    **dict.fromkeys(("monocyte", "promyelocyte", "myelocyte", "metamyelocyte"), LINEAGES[1]),
    **dict.fromkeys(("neutrophil", "eosinophil", "basophil", "granulocyte"), LINEAGES[1]),
}
"""Lineage of each type (Ryu et al. 2021, figure 5a): what the counts sum, and what a model of two classes learns. Other types
belong to neither."""

Triple: TypeAlias = tuple[float, float, float]
Shape3: TypeAlias = tuple[int, int, int]


class SourceFormat(StrEnum):
    """What a file was recognised as."""

    HOLOGRAMS = "wbcd-h5"
    TCF = "tcf"
    OME_ZARR = "ome-zarr"
    TIFF_PAIR = "tiff-pair"
    MATLAB = "mat-v7.3"


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A ticket: identifies one file of the instrument; carries no arrays.

    ``content_id`` is the BLAKE2b-160 of the bytes (40 hex digits): the identity under which the result is counted,
    whatever the file is called. A path that could not be read has an id that starts with ``unread-``. ``unprotected``: where
    a change can go unseen: "values" (pixels, voxels) or "scale" (shape, pitch, medium) have no checksum, the whole no "seal".
    ``companions``: the files beside it that belong to it, name and digest; None for one that is absent, or not digested yet.
    ``state``: what tells its present state on disk from another, beside size and mtime; "" where it is not known.
    """

    content_id: str
    path: Path
    size_bytes: int
    mtime_ns: int
    format: SourceFormat | None = None
    acquisition_id: str | None = None
    acquired_at: str | None = None
    sample_id: str = "unassigned"
    instrument_id: str | None = None
    medium_ri: float | None = None
    wavelength_um: float | None = None
    objective_na: float | None = None
    pixel_size_um: float | None = None
    time_points: int = 1
    unprotected: tuple[str, ...] = ()
    companions: tuple[tuple[str, str | None], ...] = ()
    state: str = ""


def differ(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """True when a companion is there that was not, or holds other bytes. One that is gone since says nothing of the numbers."""
    known = then or {}
    return any(digest is not None and known.get(name) != digest for name, digest in now.items())


@dataclass(frozen=True, slots=True)
class Optics:
    """The instrument as a hologram file states it; lengths in um, in vacuum where a wavelength."""

    wavelength_um: float
    objective_na: float
    medium_ri: float
    pixel_size_um: float


@dataclass(frozen=True, slots=True)
class HologramStack:
    """Raw off-axis holograms, uint8 or uint16 [angle, y, x].

    ``reference``: sample-free frames of the same shape and type, or None.
    ``illumination_rad_um``: float64 [angle, 2] (k_x, k_y) at the sample, or None: then measured from the fringes.
    ``normal_frame``: index of the frame lit along the optical axis.
    """

    holograms: NDArray[np.unsignedinteger[Any]]
    reference: NDArray[np.unsignedinteger[Any]] | None
    illumination_rad_um: NDArray[np.float64] | None
    normal_frame: int
    optics: Optics


@dataclass(frozen=True, slots=True)
class FringeReport:
    """What the raw frames say of themselves, before any field is retrieved.

    ``carrier_rad_um``: (k_x, k_y) of the normal frame's sideband.
    ``contrast``: [angle] fringe visibility 2|sideband| / |zero order|, 0..1.
    ``sideband_snr``: [angle] peak of the sideband over the median of the spectrum around it.
    ``saturated_fraction``: [angle] fraction of pixels at the grey value at which the camera clips.
    ``mean_level``: [angle] mean grey value. ``repeated``: [angle] True where a frame is, pixel by pixel, the one before.
    ``carrier_separation``, ``sideband_separation``: distance of the sideband from the zero order and from its conjugate on the
    camera's sampling lattice, in NA/lambda; 3 and 2 are free of overlap. None where they were not measured.
    """

    carrier_rad_um: tuple[float, float]
    contrast: NDArray[np.float64]
    sideband_snr: NDArray[np.float64]
    saturated_fraction: NDArray[np.float64]
    mean_level: NDArray[np.float64]
    repeated: NDArray[np.bool_] | None = None
    carrier_separation: float | None = None
    sideband_separation: float | None = None


@dataclass(frozen=True, slots=True)
class FieldStack:
    """Complex fields over the illumination, w = u / u_illumination, complex64 [angle, y, x].

    ``k_in_rad_um``: float64 [angle, 2] transverse illumination wave vector (k_x, k_y) at the sample.
    ``pixel_um``: pitch of the fields. ``kept``: [angle] indices into the raw stack (dropped frames are absent).
    ``background_rms_rad``: [angle] phase rms outside the object after the background was removed.
    ``measured_rad_um``: [angle, 2] vectors that the fringes show, where ``k_in_rad_um`` is the file's too; None: not known.
    ``illumination_misfit``: rms difference of the two, in NA k0; None where the file gives no vectors.
    """

    w: NDArray[np.complex64]
    k_in_rad_um: NDArray[np.float64]
    pixel_um: float
    normal_frame: int
    optics: Optics
    fringes: FringeReport
    kept: NDArray[np.intp]
    background_rms_rad: NDArray[np.float64]
    measured_rad_um: NDArray[np.float64] | None = None
    illumination_misfit: float | None = None


@dataclass(frozen=True, slots=True)
class Refinement:
    """How the accurate mode went. ``kept``: the held-out frames prefer its result to the fast mode's, which else stays.

    ``misfit_before``, ``misfit_after``: relative misfit of the complex phases of the held-out frames under the multi-slice
    model, for the fast and for the refined potential; of the fitted frames where too few were recorded to hold any out.
    """

    kept: bool
    misfit_before: float
    misfit_after: float
    iterations: int
    seconds: float


@dataclass(frozen=True, slots=True)
class InversionReport:
    """How the inversion went: the raw material of the optical verdict.

    ``focus_um``: height of the object above the recorded plane. ``residue_count``: phase residues inside the object,
    summed over angles. ``frame_residual``: [angle] relative misfit between each frame's measured Rytov spectrum and the
    tomogram's (a frame that disagrees with the rest stands out: motion). ``residual``: their rms; ``held_out_residual``:
    that of the frames that took no part in the fit, NaN where all did. ``cut_by_field``: the edge of the field of view cuts
    an object, whose centroids then say nothing of motion.
    """

    focus_um: float
    residue_count: int
    frame_residual: NDArray[np.float64]
    residual: float
    frame_shift_um: NDArray[np.float64]
    iterations: int
    seconds: float
    cut_by_field: bool = False
    refinement: Refinement | None = None
    held_out_residual: float = math.nan

    @property
    def mode(self) -> str:
        """The mode whose result this is: "accurate" only where the held-out frames preferred it."""
        return "accurate" if self.refinement is not None and self.refinement.kept else "fast"

    @property
    def judged_by(self) -> float:
        """Relative misfit of the held-out frames under the mode's own model."""
        return self.refinement.misfit_after if self.refinement is not None and self.refinement.kept else self.held_out_residual


@dataclass(frozen=True, slots=True)
class Tomogram:
    """Refractive index, float32 [z, y, x]; ``voxel_um`` (z, y, x).

    ``origin_um``: position of voxel (0, 0, 0) in the instrument's field of view. ``field_of_view_um``: its bounds (y0, y1, x0,
    x1) in the same coordinates, or None where the volume's own are all there is. ``cut_um``: such bounds of each object that
    reaches the edge of the field, as the normal frame shows them. ``fill``: voxels that hold no measurement (stitched TCF).
    """

    ri: NDArray[np.float32]
    voxel_um: Triple
    medium_ri: float
    origin_um: Triple = (0.0, 0.0, 0.0)
    time_index: int = 0
    wavelength_um: float | None = None
    objective_na: float | None = None
    report: InversionReport | None = None
    field_of_view_um: tuple[float, float, float, float] | None = None
    cut_um: tuple[tuple[float, float, float, float], ...] = ()
    fill: NDArray[np.bool_] | None = None


class RiSeries:
    """Reconstructed RI volumes of one file, loaded one at a time (each may be hundreds of MB)."""

    def __init__(self, count: int, volumes: Iterator[Tomogram]) -> None:
        self.count = count
        self._volumes = volumes

    def __iter__(self) -> Iterator[Tomogram]:
        return self._volumes

    def close(self) -> None:
        """Let go of what serves the volumes; those that were not taken are lost. Closing twice is harmless."""
        close = getattr(self._volumes, "close", None)  # generators and the isolated reader's volumes have one, lists do not
        if close is not None:
            close()


Payload: TypeAlias = HologramStack | RiSeries


@dataclass(frozen=True, slots=True)
class Check:
    """One judged value beside its limit. ``sense``: "max" (value <= limit passes) or "min" (value >= limit passes)."""

    code: str
    value: float
    limit: float
    sense: Literal["max", "min"]
    unit: str = ""

    @property
    def passed(self) -> bool:
        """True when the value is within its limit; a NaN never passes."""
        return self.value <= self.limit if self.sense == "max" else self.value >= self.limit

    def sentence(self) -> str:
        """For a person: code, value and limit."""
        word = "at most" if self.sense == "max" else "at least"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.code} is {self.value:.4g}{unit}; the recipe allows {word} {self.limit:.4g}{unit}."


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one judgement, passed and failed alike, in order of weight."""

    checks: tuple[Check, ...] = ()

    @property
    def accepted(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> Check | None:
        """The first failed check: the reason."""
        return next((check for check in self.checks if not check.passed), None)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(self.checks + other.checks)

    def as_json(self) -> list[dict[str, Any]]:
        """For the store: one object a check."""
        return [
            {"code": c.code, "value": _finite(c.value), "limit": c.limit, "sense": c.sense, "unit": c.unit, "passed": c.passed}
            for c in self.checks
        ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Cell:
    """One object cut out of a tomogram, centred, at the recipe's pitch.

    ``ri`` float32 and ``mask`` bool, both of the recipe's crop shape [z, y, x]; ``number`` counts from 1 within the
    acquisition; ``centre_um`` (z, y, x) in the instrument's field of view; ``touches_border``: cut by the field of view or
    by the volume; ``solidity``: volume over that of the convex hull; ``lobes``: count of separable bodies by the distance
    transform (two cells grown together give 2); ``objective_na``, ``wavelength_um`` and ``pitch_um`` (lateral, of the source)
    as the tomogram states them, None where it does not; ``non_physical_voxels``: voxels of the source region that are NaN,
    infinite or outside the recipe's bounds. ``mode``: "fast" or "accurate", empty where the RI was read, not inverted;
    ``held_out_residual``: relative misfit of the frames that took no part in the inversion, NaN where none were left out.
    """

    number: int
    ri: NDArray[np.float32]
    mask: NDArray[np.bool_]
    voxel_um: Triple
    medium_ri: float
    centre_um: Triple
    time_index: int = 0
    touches_border: bool = False
    solidity: float = 1.0
    lobes: int = 1
    non_physical_voxels: int = 0
    objective_na: float | None = None
    wavelength_um: float | None = None
    pitch_um: float | None = None
    mode: str = ""
    held_out_residual: float = math.nan


@dataclass(frozen=True, slots=True)
class Morphology:
    """The six parameters of Ryu et al. 2021, section 4.3, and those kept beside them.

    The ``half_contrast`` columns are taken at the surface half-way between the medium and the cell's core. The
    ``uncertainty`` columns are standard uncertainties (one sigma) of the half-contrast volume, its dry mass and the mean RI
    of the two; NaN where they were not measured.
    """

    volume_fl: float
    surface_area_um2: float
    sphericity: float
    dry_mass_pg: float
    protein_density_g_dl: float
    mean_ri: float
    max_ri: float
    volume_half_contrast_fl: float
    dry_mass_half_contrast_pg: float
    dry_mass_total_pg: float
    mean_ri_uncertainty: float = math.nan
    volume_uncertainty_fl: float = math.nan
    dry_mass_uncertainty_pg: float = math.nan

    def mean_ri_half_contrast(self, ri_increment_ml_g: float, medium_ri: float) -> float:
        """Mean RI that the half-contrast volume and dry mass give together: n_m + alpha m/V."""
        if not self.volume_half_contrast_fl:
            return math.nan
        return medium_ri + ri_increment_ml_g * self.dry_mass_half_contrast_pg / self.volume_half_contrast_fl


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one cell. ``probabilities`` in the model's class order; ``features`` float32 [n], not stored."""

    model_id: str
    label: str
    probability: float
    probabilities: Mapping[str, float]
    flags: tuple[str, ...] = ()
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """A cell as the store takes it: no volume, its picture as PNG bytes."""

    number: int
    time_index: int
    centre_um: Triple
    verdict: Verdict
    morphology: Morphology
    prediction: Prediction | None
    thumbnail_png: bytes | None = None
    tomogram_path: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The acquisition gave at least one acceptable cell. Cells that failed their own verdict are kept beside, uncounted."""

    acquisition: Acquisition
    verdict: Verdict
    cells: tuple[MeasuredCell, ...]
    seconds: float = 0.0

    kind: Literal["measured"] = field(default="measured", init=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The acquisition was read, judged and refused: ``reason`` is the failed check's code."""

    acquisition: Acquisition
    verdict: Verdict
    reason: str
    message: str
    cells: tuple[MeasuredCell, ...] = ()
    seconds: float = 0.0

    kind: Literal["rejected"] = field(default="rejected", init=False)


@dataclass(frozen=True, slots=True)
class SetAside:
    """The acquisition could not be processed; the error says why and what to do."""

    acquisition: Acquisition
    error: WbcdError
    seconds: float = 0.0

    kind: Literal["set_aside"] = field(default="set_aside", init=False)


Outcome: TypeAlias = Measured | Rejected | SetAside
