"""The instrument measured by itself: what one acquisition of a bead, or of nothing, says of carrier, light and lens.

Illumination: the fringe peaks lie on a circle about the carrier; its centre, radius and gaps follow. Lens: a bead of known
diameter and index scatters a known spectrum (scalar Mie theory); what the measured one has besides is the pupil's phase, in
Zernike polynomials, and a wrong scale, which is a wrong pixel size.

The measured field is w = u/u_in, so frame i carries exp i[phi(K + k_in) - phi(k_in)]: the pupil is sampled as far as light
scattered from each direction reaches. A tilt of the pupil is a displacement of the bead, and its defocus a height: those two
are not aberrations that a bead can show, and are reported as its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import BadValue, MissingField, NoObject, ReconstructionError
from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.reconstruction.field import retrieve_fields
from wbcd.reconstruction.fringes import measure_fringes
from wbcd.reconstruction.mie import FarField
from wbcd.reconstruction.pupil import measure_rim
from wbcd.records import Check, FieldStack, FringeReport, HologramStack, Optics, Verdict

ALGORITHM_VERSION = ALGORITHMS["drift"]
"""Of the drift against the stored calibration (last part of this module). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

# Drift of one tolerance is worth a warning: of the carrier and the circle in NA, of its radius and of the contrast as a share.
CARRIER_TOLERANCE_NA = 0.02
CENTRE_TOLERANCE_NA = 0.01
RADIUS_TOLERANCE = 0.01
CONTRAST_TOLERANCE = 0.2
# Of two beads: 0.5 % of pixel size is 1.5 % of volume; 0.2 rad rms of pupil phase take 4 % off a point's peak (Marechal).
PIXEL_TOLERANCE = 0.005
ABERRATION_TOLERANCE_RAD = 0.2
# Fewer tilted frames make no circle.
RING_MIN = 3
# The spectrum is fitted this far out: the pupil's very rim is cut by the demodulation.
RIM = 0.95
FIT_FRAMES = 12
FIT_POINTS = 4000
WINDOW_UM = 11.0
# Exact beads end after 6 steps at most, wrong ones after 12; on a cell 400 took a minute and ended no better.
FIT_STEPS = 20
# Simulated beads leave 0.007 to 0.013 (a weak one of 1 um 0.10), simulated cells fitted as beads of 5 to 9 um 0.152 to 0.72.
MAX_BEAD_RESIDUAL = 0.12
HEIGHTS_UM = np.arange(-6.0, 6.01, 0.5)
#: Order and azimuthal number of the fitted Zernike polynomials; piston, tilts and defocus are none (see above).
ZERNIKE: Mapping[str, tuple[int, int]] = {
    "astigmatism_45": (2, -2),
    "astigmatism_0": (2, 2),
    "trefoil_y": (3, -3),
    "coma_y": (3, -1),
    "coma_x": (3, 1),
    "trefoil_x": (3, 3),
    "quatrefoil_22": (4, -4),
    "secondary_astigmatism_45": (4, -2),
    "spherical": (4, 0),
    "secondary_astigmatism_0": (4, 2),
    "quatrefoil_0": (4, 4),
}


@dataclass(frozen=True, slots=True)
class Ring:
    """The illumination circle. ``centre_na`` (x, y) from the normal frame; ``roundness``: rms of the radius over the radius.

    ``angles_deg``: of each tilted frame about the centre, NaN for the normal frame. ``gaps_deg``: middle of each gap wider than
    1.6 of the usual step: a direction is missing there. ``repeated``: frames whose direction another frame has too.
    """

    centre_na: tuple[float, float]
    radius_na: float
    roundness: float
    angles_deg: tuple[float, ...]
    gaps_deg: tuple[float, ...]
    repeated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bead:
    """A calibration bead as it is known, and as the fit found it.

    ``place_um`` (z, y, x) in the field of view; ``residual``: what the fitted spectrum leaves unexplained, relative.
    ``zernike_rad``: Noll-normalised coefficients (rad rms over the pupil) by name, with ``zernike_rms_rad`` over all.
    """

    diameter_um: float
    ri: float
    place_um: tuple[float, float, float]
    pixel_size_um: float
    residual: float
    zernike_rad: Mapping[str, float]

    @property
    def explained(self) -> bool:
        """True when the fit left so little that the object is the bead it was said to be."""
        return self.residual <= MAX_BEAD_RESIDUAL

    @property
    def zernike_rms_rad(self) -> float:
        """Rms of the pupil's phase without piston, tilt and defocus."""
        return math.sqrt(sum(value**2 for value in self.zernike_rad.values()))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What :func:`calibrate` found; lengths in um, ``carrier_rad_um`` (k_x, k_y).

    ``rim_na``: where the objective's pupil ends, as NA at the stated pixel size; None where no light reaches its rim.
    """

    optics: Optics
    frames: int
    carrier_rad_um: tuple[float, float]
    carrier_separation: float
    sideband_separation: float
    fringe_contrast: float
    ring: Ring
    pixel_size_from_ring_um: float | None = None
    bead: Bead | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    rim_na: float | None = None

    @property
    def pixel_size_from_rim_um(self) -> float | None:
        """Pixels under which the rim lies at the objective's NA."""
        return None if self.rim_na is None else self.optics.pixel_size_um * self.rim_na / self.optics.objective_na

    @property
    def illumination_na(self) -> float | None:
        """The circle over the rim, times the objective's NA: the illumination's NA whatever the pixels are."""
        return None if self.rim_na is None else self.optics.objective_na * self.ring.radius_na / self.rim_na

    def as_json(self) -> dict[str, Any]:
        """Plain values, JSON-ready; a frame without an angle has null."""
        ring = self.ring
        out: dict[str, Any] = {
            "wavelength_um": self.optics.wavelength_um,
            "objective_na": self.optics.objective_na,
            "medium_ri": self.optics.medium_ri,
            "pixel_size_um": self.optics.pixel_size_um,
            "frames": self.frames,
            "carrier_rad_um": list(self.carrier_rad_um),
            "carrier_separation": self.carrier_separation,
            "sideband_separation": self.sideband_separation,
            "fringe_contrast": self.fringe_contrast,
            "ring": {
                "centre_na": list(ring.centre_na),
                "radius_na": ring.radius_na,
                "roundness": ring.roundness,
                "angles_deg": [None if math.isnan(angle) else angle for angle in ring.angles_deg],
                "gaps_deg": list(ring.gaps_deg),
                "repeated": list(ring.repeated),
            },
            "pixel_size_from_ring_um": self.pixel_size_from_ring_um,
            "rim_na": self.rim_na,
            "bead": None,
            **({"notes": dict(self.notes)} if self.notes else {}),
        }
        if self.bead is not None:
            out["bead"] = {
                "diameter_um": self.bead.diameter_um,
                "ri": self.bead.ri,
                "place_um": list(self.bead.place_um),
                "pixel_size_um": self.bead.pixel_size_um,
                "residual": self.bead.residual,
                "zernike_rad": dict(self.bead.zernike_rad),
            }
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`as_json`; raises BadValue where a field is absent or of another kind."""
        try:
            ring, bead = data["ring"], data.get("bead")
            return cls(
                optics=Optics(*(float(data[k]) for k in ("wavelength_um", "objective_na", "medium_ri", "pixel_size_um"))),
                frames=int(data["frames"]),
                carrier_rad_um=_pair(data["carrier_rad_um"]),
                carrier_separation=float(data["carrier_separation"]),
                sideband_separation=float(data["sideband_separation"]),
                fringe_contrast=float(data["fringe_contrast"]),
                ring=Ring(
                    _pair(ring["centre_na"]),
                    float(ring["radius_na"]),
                    float(ring["roundness"]),
                    tuple(math.nan if angle is None else float(angle) for angle in ring["angles_deg"]),
                    tuple(float(gap) for gap in ring["gaps_deg"]),
                    tuple(int(frame) for frame in ring["repeated"]),
                ),
                pixel_size_from_ring_um=_optional(data.get("pixel_size_from_ring_um")),
                bead=None if bead is None else _bead_from(bead),
                notes={str(key): str(value) for key, value in data.get("notes", {}).items()},
                rim_na=_optional(data.get("rim_na")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadValue(f"The stored calibration is not one of wbcd's: {type(error).__name__}: {error}.") from error


def _pair(values: Any) -> tuple[float, float]:
    x, y = values
    return float(x), float(y)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _bead_from(data: Mapping[str, Any]) -> Bead:
    z, y, x = data["place_um"]
    return Bead(
        float(data["diameter_um"]),
        float(data["ri"]),
        (float(z), float(y), float(x)),
        float(data["pixel_size_um"]),
        float(data["residual"]),
        {str(name): float(value) for name, value in data["zernike_rad"].items()},
    )


# --- calibrating -----------------------------------------------------------------------------------


def calibrate(
    stack: HologramStack,
    recipe: Recipe,
    *,
    bead_um: float | None = None,
    bead_ri: float | None = None,
    illumination_na: float | None = None,
) -> tuple[Calibration, FieldStack]:
    """Everything that one acquisition says of its instrument, and the fields it was read from.

    With ``bead_um`` and ``bead_ri`` (diameter and index of a bead in the field of view) also pixel size and aberrations.
    ``illumination_na``, where known, or vectors in the file give the pixel size from the circle; so does the objective's rim,
    where enough light is scattered to it. Raises ReconstructionError where nothing interferes, MissingField for a bead without
    a reference, NoObject where the bead is not seen, BadValue for a bead that cannot be.
    """
    if (bead_um is None) != (bead_ri is None):
        raise BadValue("A bead is known by its diameter and its refractive index: give both or neither.")
    if bead_um is not None and stack.reference is None:
        # The background fit takes part of the bead's halo with it: 0.35 % of the pixel size.
        raise MissingField(
            "reference: the acquisition has no sample-free frames; the fit of a bead needs them.",
            action="Record the empty field with the same scan beside the bead, or calibrate without --bead-um and --bead-ri.",
        )
    fringes = measure_fringes(stack)
    if fringes.carrier_separation is None or fringes.sideband_separation is None:
        raise ReconstructionError("No sideband stands out of the frames: there are no fringes to calibrate by.")
    measured = retrieve_fields(replace(stack, illumination_rad_um=None), recipe, fringes=fringes)
    ring = measure_ring(measured.k_in_rad_um, _normal_of(measured), stack.optics)
    calibration = Calibration(
        optics=stack.optics,
        frames=len(stack.holograms),
        carrier_rad_um=fringes.carrier_rad_um,
        carrier_separation=fringes.carrier_separation,
        sideband_separation=fringes.sideband_separation,
        fringe_contrast=float(np.median(fringes.contrast[measured.kept])),
        ring=ring,
        pixel_size_from_ring_um=_pixel_from_ring(stack, measured, ring, illumination_na),
        rim_na=measure_rim(stack, _pair(np.array(fringes.carrier_rad_um) / (2 * math.pi))),
    )
    if bead_um is None or bead_ri is None:
        return calibration, measured
    return replace(calibration, bead=fit_bead(measured, bead_um, bead_ri, stack.optics.pixel_size_um)), measured


def _pixel_from_ring(stack: HologramStack, fields: FieldStack, ring: Ring, illumination_na: float | None) -> float | None:
    """k is measured in 1/pixel: a circle found larger than it is means pixels larger than stated."""
    if illumination_na is not None:
        return stack.optics.pixel_size_um * ring.radius_na / illumination_na
    if stack.illumination_rad_um is None:
        return None
    given = np.asarray(stack.illumination_rad_um)[fields.kept]
    tilted = np.hypot(*given.T) > 0.1 * np.hypot(*given.T).max()
    scale = np.sum(given[tilted] * fields.k_in_rad_um[tilted]) / np.sum(given[tilted] ** 2)
    # The other sideband shows all vectors reversed.
    return stack.optics.pixel_size_um * abs(float(scale))


def measure_ring(k_in_rad_um: NDArray[np.float64], normal_frame: int, optics: Optics) -> Ring:
    """The circle through the tilted illumination vectors [frame, 2] (rad/um); raises ReconstructionError below 3 of them."""
    na = k_in_rad_um * optics.wavelength_um / (2 * math.pi)
    tilted = _tilted(na, normal_frame)
    if len(tilted) < RING_MIN:
        raise ReconstructionError(f"{len(tilted)} tilted frames were found; a circle of illumination needs {RING_MIN}.")
    design = np.column_stack([2 * na[tilted], np.ones(len(tilted))])
    x, y, _ = np.linalg.lstsq(design, (na[tilted] ** 2).sum(1), rcond=None)[0]
    away = na[tilted] - (x, y)
    radius = np.hypot(away[:, 0], away[:, 1])
    angles = np.full(len(na), math.nan)
    angles[tilted] = np.degrees(np.arctan2(away[:, 1], away[:, 0])) % 360
    gaps, repeated = _gaps(angles, tilted)
    return Ring(
        centre_na=(float(x), float(y)),
        radius_na=float(radius.mean()),
        roundness=float(radius.std() / radius.mean()),
        angles_deg=tuple(float(angle) for angle in angles),
        gaps_deg=gaps,
        repeated=repeated,
    )


def _normal_of(fields: FieldStack) -> int:
    """Position of the frame lit along the axis; -1 where another stands in for it, which belongs to the circle."""
    axis = fields.fringes.axis
    there = axis is None or axis.normal_frame == int(fields.kept[fields.normal_frame])
    return fields.normal_frame if there else -1


def _tilted(vectors: NDArray[np.float64], normal_frame: int) -> NDArray[np.intp]:
    """Frames whose vector [frame, 2] belongs to the circle."""
    length = np.hypot(vectors[:, 0], vectors[:, 1])
    return np.flatnonzero((length > 0.2 * length.max(initial=0.0)) & (np.arange(len(vectors)) != normal_frame))


def _gaps(angles: NDArray[np.float64], tilted: NDArray[np.intp]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Middles of the gaps over 1.6 usual steps, and frames closer than a quarter of one to the frame before them."""
    order = tilted[np.argsort(angles[tilted])]
    sorted_angles = angles[order]
    steps = np.diff(np.append(sorted_angles, sorted_angles[0] + 360))
    usual = float(np.median(steps))
    gaps = tuple(float((sorted_angles[i] + steps[i] / 2) % 360) for i in np.flatnonzero(steps > 1.6 * usual))
    repeated = tuple(int(order[(i + 1) % len(order)]) for i in np.flatnonzero(steps < 0.25 * usual))
    return gaps, repeated


# --- the bead --------------------------------------------------------------------------------------


def fit_bead(fields: FieldStack, diameter_um: float, ri: float, pixel_size_um: float) -> Bead:
    """Place, scale and pupil phase under which Mie theory explains the fields best; see the module's text.

    Raises NoObject where no bead stands out, BadValue where it has no contrast.
    """
    if abs(ri - fields.optics.medium_ri) < 1e-4:
        raise BadValue(f"bead RI is {ri}, the medium's {fields.optics.medium_ri}: such a bead is invisible.")
    chosen = _frames_for_fit(fields)
    model = _BeadModel(fields, chosen, diameter_um / 2, ri)
    start, seen = model.find()
    if seen < 0.2:
        raise NoObject(
            f"No bead of {diameter_um} um and RI {ri} is seen: {100 * seen:.0f} % of the scattered light is explained by one.",
            action="Check diameter and index; the field of view must hold one bead, near focus.",
        )
    parameters, residual = model.fit(start)
    scale = float(parameters[3])
    return Bead(
        diameter_um=diameter_um,
        ri=ri,
        place_um=(float(parameters[2]) / scale, float(parameters[1]) / scale, float(parameters[0]) / scale),
        pixel_size_um=pixel_size_um / scale,
        residual=residual,
        zernike_rad=dict(zip(ZERNIKE, (float(value) for value in parameters[4:]), strict=True)),
    )


def _frames_for_fit(fields: FieldStack) -> NDArray[np.intp]:
    """The normal frame and some of the circle, evenly."""
    others = np.delete(np.arange(len(fields.w)), fields.normal_frame)
    picked = others[np.unique(np.linspace(0, len(others) - 1, FIT_FRAMES - 1).round().astype(int))] if len(others) else others
    return np.concatenate([[fields.normal_frame], picked]).astype(np.intp)


class _BeadModel:
    """Mie spectrum of one bead beside the measured spectra of some frames.

    Parameters: place x, y, z in stated um from the field's corner and its plane, scale s (true over stated frequencies, which
    is stated over true pixel), then the Zernike coefficients in rad.
    """

    def __init__(self, fields: FieldStack, chosen: NDArray[np.intp], radius_um: float, ri: float) -> None:
        optics = fields.optics
        self._k0 = 2 * math.pi / optics.wavelength_um
        self._k = self._k0 * optics.medium_ri
        self._na = optics.objective_na
        self._pixel = fields.pixel_um
        self._k_in = fields.k_in_rad_um[chosen]
        self._w = fields.w[chosen].astype(np.complex128) - 1.0
        self._far = FarField(radius_um, ri, optics.wavelength_um, optics.medium_ri)
        ny, nx = self._w.shape[-2:]
        self._ky = 2 * np.pi * np.fft.fftfreq(ny, self._pixel)
        self._kx = 2 * np.pi * np.fft.fftfreq(nx, self._pixel)

    def find(self) -> tuple[NDArray[np.float64], float]:
        """Place at which the model correlates best with the fields, and the share of the scattered light it explains there."""
        frames = range(min(6, len(self._k_in)))
        spectra = np.fft.fft2(self._w[: len(frames)]) * self._pixel**2
        best: tuple[float, NDArray[np.float64]] = (-1.0, np.zeros(3))
        power = 0.0
        maps = []
        for i in frames:
            model, inside, axial = self._plain(i)
            power += math.sqrt(float((np.abs(spectra[i][inside]) ** 2).sum() * (np.abs(model) ** 2).sum()))
            maps.append((spectra[i][inside] * model.conj(), inside, axial))
        for z in HEIGHTS_UM:
            image = np.zeros(self._w.shape[-2:], np.complex128)
            for product, inside, axial in maps:
                grid = np.zeros(image.shape, np.complex128)
                grid[inside] = product * np.exp(1j * axial * z)
                image += np.fft.ifft2(grid) * grid.size
            at = int(np.argmax(image.real))
            iy, ix = np.unravel_index(at, image.shape)
            if image.real.flat[at] / power > best[0]:
                place = np.array([ix * self._pixel, iy * self._pixel, z])
                best = (float(image.real.flat[at] / power), place)
        start = np.concatenate([best[1], [1.0], np.zeros(len(ZERNIKE))])
        return start, best[0]

    def _plain(self, frame: int) -> tuple[NDArray[np.complex128], NDArray[np.bool_], NDArray[np.float64]]:
        """Spectrum of the centred bead at scale 1 within the rim, where that is, and k_z - k_z0 there."""
        px, py = self._k_in[frame]
        kx, ky = self._kx[None, :] + px, self._ky[:, None] + py
        inside = kx**2 + ky**2 <= (RIM * self._na * self._k0) ** 2
        iy, ix = np.nonzero(inside)
        points = np.column_stack([self._kx[ix], self._ky[iy]])
        model, axial = self._spectrum(points, np.tile(self._k_in[frame], (len(points), 1)))
        return model, inside, axial

    def _spectrum(
        self, points: NDArray[np.float64], k_in: NDArray[np.float64]
    ) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
        """2 pi/(k k_z) sum (2l+1) R_l P_l(cos gamma) at true frequencies K [point, 2], and k_z - k_z0."""
        kt = points + k_in
        kz = np.sqrt(np.maximum(self._k**2 - (kt**2).sum(1), 1e-6))
        kz0 = np.sqrt(np.maximum(self._k**2 - (k_in**2).sum(1), 1e-6))
        cosine = ((kt * k_in).sum(1) + kz * kz0) / self._k**2
        model: NDArray[np.complex128] = 2 * np.pi / (self._k * kz) * self._far(cosine)
        return model, kz - kz0

    def fit(self, start: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Least squares of the complex spectra at the strongest points; the parameters and the relative residual."""
        from scipy.optimize import least_squares

        points, k_in, measured = self._points(start)
        norm = float(np.linalg.norm(measured))

        def misfit(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
            left = (self._model(parameters, points, k_in) - measured) / norm
            return np.concatenate([left.real, left.imag])

        steps = np.concatenate([[0.05, 0.05, 0.2, 0.005], np.full(len(ZERNIKE), 0.1)])
        found = least_squares(misfit, start, x_scale=steps, method="trf", max_nfev=FIT_STEPS)
        parameters: NDArray[np.float64] = found.x
        return parameters, float(np.linalg.norm(found.fun))

    def _points(self, start: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.complex128]]:
        """Frequencies K [point, 2], their k_in and the measured spectrum, windowed about the bead, taken from all frames."""
        x, y, z = start[:3]
        ny, nx = self._w.shape[-2:]
        ay, ax = np.arange(ny) * self._pixel, np.arange(nx) * self._pixel
        quota = FIT_POINTS // len(self._k_in)
        points, vectors, values = [], [], []
        for i, (px, py) in enumerate(self._k_in):
            # The shadow of a bead off focus lies aside; see FieldStack.
            kz0 = math.sqrt(max(self._k**2 - px**2 - py**2, 1e-6))
            cx, cy = x - z * px / kz0, y - z * py / kz0
            distance = np.hypot(ay[:, None] - cy, ax[None, :] - cx)
            reach = min(WINDOW_UM, cx, cy, ax[-1] - cx, ay[-1] - cy)
            window = 0.5 * (1 + np.cos(np.pi * np.clip((distance / max(reach, 1.0) - 0.6) / 0.4, 0, 1)))
            spectrum = np.fft.fft2(self._w[i] * window) * self._pixel**2
            model, inside, _ = self._plain(i)
            iy, ix = np.nonzero(inside)
            # Every place of the pupil counts, strong ones more often.
            weight = np.abs(model) ** 0.5
            rng = np.random.default_rng(i)
            picked = rng.choice(len(model), min(quota, len(model)), replace=False, p=weight / weight.sum())
            points.append(np.column_stack([self._kx[ix[picked]], self._ky[iy[picked]]]))
            vectors.append(np.tile((px, py), (len(picked), 1)))
            values.append(spectrum[inside][picked])
        return np.concatenate(points), np.concatenate(vectors), np.concatenate(values)

    def _model(
        self, parameters: NDArray[np.float64], points: NDArray[np.float64], k_in: NDArray[np.float64]
    ) -> NDArray[np.complex128]:
        x, y, z, scale = parameters[:4]
        model, axial = self._spectrum(points * scale, k_in * scale)
        rim = self._na * self._k0
        phase = -(points @ np.array([x, y])) - axial * z / scale
        for value, (order, azimuth) in zip(parameters[4:], ZERNIKE.values(), strict=True):
            at = zernike(order, azimuth, (points + k_in) * scale / rim)
            phase = phase + value * (at - zernike(order, azimuth, k_in * scale / rim))
        # The spectrum is taken over stated pixels: its area element is (stated/true)^2 = scale^2 of the true one.
        shaped: NDArray[np.complex128] = model * scale**2 * np.exp(1j * phase)
        return shaped


def zernike(order: int, azimuth: int, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noll-normalised Zernike polynomial at ``place`` [point, 2] (x, y) in units of the pupil's radius (Noll 1976).

    Its mean square over the unit disc is 1; sine terms have a negative azimuth.
    """
    rho, theta = np.hypot(place[:, 0], place[:, 1]), np.arctan2(place[:, 1], place[:, 0])
    m = abs(azimuth)
    radial = np.zeros_like(rho)
    for s in range((order - m) // 2 + 1):
        sign = (-1) ** s * math.factorial(order - s)
        below = math.factorial(s) * math.factorial((order + m) // 2 - s) * math.factorial((order - m) // 2 - s)
        radial += sign / below * rho ** (order - 2 * s)
    if m == 0:
        return math.sqrt(order + 1) * radial
    angular = np.cos(m * theta) if azimuth > 0 else np.sin(m * theta)
    found: NDArray[np.float64] = math.sqrt(2 * (order + 1)) * radial * angular
    return found


# --- drift -----------------------------------------------------------------------------------------


def drift(
    calibration: Calibration, fringes: FringeReport, fields: FieldStack | None = None, bead: Bead | None = None
) -> dict[str, float]:
    """How far an acquisition departs from the calibration, in tolerances: 1 is worth a warning. By quantity.

    ``carrier``: shift of the sideband; ``contrast``: loss of fringe contrast (a gain is none); with ``fields`` also
    ``ring_centre`` and ``ring_radius`` of the measured vectors, unless too few frames are tilted; with a ``bead``, where the
    calibration has one too, ``bead_pixel_size`` and ``aberration``. A carrier and its conjugate are the same carrier.
    """
    to_na = calibration.optics.wavelength_um / (2 * math.pi)
    now, then = np.array(fringes.carrier_rad_um), np.array(calibration.carrier_rad_um)
    shift = float(min(np.hypot(*(now - then)), np.hypot(*(now + then)))) * to_na
    # A lost frame has no contrast, and is no loss of it; `calibrate` takes the median of the kept ones too.
    contrast = fringes.contrast if fields is None else fringes.contrast[fields.kept]
    loss = 1 - float(np.median(contrast)) / max(calibration.fringe_contrast, 1e-6)
    found = {"carrier": shift / CARRIER_TOLERANCE_NA, "contrast": max(loss, 0.0) / CONTRAST_TOLERANCE}
    if fields is not None:
        found |= _ring_drift(calibration.ring, fields)
    if bead is not None and calibration.bead is not None:
        found |= _bead_drift(calibration.bead, bead)
    return found


def _ring_drift(then: Ring, fields: FieldStack) -> dict[str, float]:
    # Vectors that the file states say nothing of where the light comes from today.
    k_in = fields.k_in_rad_um if fields.measured_rad_um is None else fields.measured_rad_um
    normal = _normal_of(fields)
    if len(_tilted(k_in, normal)) < RING_MIN:
        return {}  # whether so few frames are enough is the optical verdict's to say
    ring = measure_ring(k_in, normal, fields.optics)
    centre, before = np.array(ring.centre_na), np.array(then.centre_na)
    aside = float(min(np.hypot(*(centre - before)), np.hypot(*(centre + before))))
    return {
        "ring_centre": aside / CENTRE_TOLERANCE_NA,
        "ring_radius": abs(ring.radius_na / then.radius_na - 1) / RADIUS_TOLERANCE,
    }


def _bead_drift(then: Bead, now: Bead) -> dict[str, float]:
    change = math.sqrt(sum((now.zernike_rad.get(name, 0.0) - then.zernike_rad.get(name, 0.0)) ** 2 for name in ZERNIKE))
    return {
        "bead_pixel_size": abs(now.pixel_size_um / then.pixel_size_um - 1) / PIXEL_TOLERANCE,
        "aberration": change / ABERRATION_TOLERANCE_RAD,
    }


def judge_drift(found: Mapping[str, float], recipe: Recipe) -> Verdict:
    """One check: the greatest drift in tolerances, beside the recipe's limit."""
    worst = max(found.values(), default=0.0)
    return Verdict((Check("instrument_drift", worst, recipe.quality.max_instrument_drift, "max", "tolerances"),))
