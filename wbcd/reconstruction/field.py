"""Off-axis holograms -> complex fields over the illumination.

Demodulation by the Fourier transform method (Takeda 1982; Cuche 2000 for off-axis holography): the sideband of each frame is
moved by one integer shift, cut by the objective's pupil, and brought to the output pitch; division by the sample-free field
cancels the tilt and the fractional carrier together.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.errors import BadField, ReconstructionError
from wbcd.recipe import Recipe
from wbcd.reconstruction.unwrap import unwrap
from wbcd.records import FieldStack, FringeReport, HologramStack, Optics

# The zero order and its halo reach NA/lambda (weak objects); sidebands are looked for outside this fraction of it.
ZERO_ORDER_FRACTION = 1.3
# 8-bit cameras stop at 255; 16-bit files hold 10, 12, 14 or 16 bits.
FULL_SCALES = (255, 1023, 4095, 16383, 65535)
# A camera that clips elsewhere piles pixels up there: more than this share of all, and so many times what a level below holds.
# (Noise-free fringes, whose crests are flat, reach 2.4 times; a tail of shot noise falls towards the maximum.)
CLIPPED_SHARE = 1e-4
CLIPPED_PILE = 5.0
LEVELS_BELOW = 8
FRAMES_AT_ONCE = 7
# A frame with less than this share of the median light is lost.
DARK_SHARE = 0.1
# Peaks on the illumination circle that are asked for its centre when the normal frame is lost.
RING_FRAMES = 16
# Noise reaches 4 times the median of its spectrum among 100,000 bins.
MIN_PEAK = 10.0
MIN_CONTRAST = 0.02
STACK_ACTION = "Correct the stack that is handed over; the readers of wbcd make none such."
# Frames whose sides give no common pitch are cropped by at most this share of a side.
MAX_CROP = 0.05


def measure_fringes(stack: HologramStack) -> FringeReport:
    """Carrier, contrast, saturation and level of the raw frames; never raises for bad optics, the verdict judges.

    Equation: visibility = 2 |sideband| / |zero order| of the Hann-windowed frame.
    """
    frames = stack.holograms
    peaks = _FringeFinder(stack.optics, frames.shape[1:])
    carrier = peaks.carrier_of(frames, stack.normal_frame)
    found = [peaks.around(frame, carrier) for frame in frames]
    scale = _full_scale(frames)
    # Without fringes the place of the strongest noise, or of a ripple of the zero order, says nothing of a carrier.
    clear = any(f.snr >= MIN_PEAK and f.contrast >= MIN_CONTRAST for f in found)
    zero_order, conjugate = sideband_distances(carrier, stack.optics) if clear else (None, None)
    return FringeReport(
        carrier_rad_um=(2 * math.pi * carrier[0], 2 * math.pi * carrier[1]),
        contrast=np.array([f.contrast for f in found]),
        sideband_snr=np.array([f.snr for f in found]),
        saturated_fraction=np.array([float(np.mean(frame >= scale)) for frame in frames]),
        mean_level=np.array([float(frame.mean()) for frame in frames]),
        repeated=_repeated(frames),
        carrier_separation=zero_order,
        sideband_separation=conjugate,
    )


def sideband_distances(carrier_cycles_um: tuple[float, float], optics: Optics) -> tuple[float, float]:
    """Distances of the sideband's centre from the zero order and from its own conjugate, in units of NA/lambda.

    On the lattice of the camera's sampling: a real frame repeats its spectrum every 1/pixel along both axes, so a carrier
    beyond Nyquist comes back as an alias, and what it then overlaps is found all the same. Free of overlap are 3 (the zero
    order of |u|^2 has radius 2, a sideband radius 1) and 2.
    """
    pupil = optics.objective_na / optics.wavelength_um
    span = 1.0 / optics.pixel_size_um

    def shortest(fx: float, fy: float) -> float:
        return math.hypot(fx - span * round(fx / span), fy - span * round(fy / span)) / pupil

    fx, fy = carrier_cycles_um
    return shortest(fx, fy), shortest(2 * fx, 2 * fy)


def _lit(frames: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
    """True [frame] where a frame holds light that varies: not lost."""
    level = frames.mean((1, 2))
    lit: NDArray[np.bool_] = (level > DARK_SHARE * np.median(level)) & ~_constant(frames)
    return lit


def _constant(frames: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
    """True [frame] where every pixel has one value: a lost frame."""
    flat = frames.reshape(len(frames), -1)
    constant: NDArray[np.bool_] = flat.min(1) == flat.max(1)
    return constant


def _repeated(frames: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
    """True [frame] where a frame is the one before once more: noise never repeats, a stuck grabber does."""
    same = [i > 0 and np.array_equal(frame, frames[i - 1]) and frame.min() != frame.max() for i, frame in enumerate(frames)]
    return np.array(same)


def _full_scale(frames: NDArray[np.unsignedinteger[Any]]) -> int:
    """Grey value at which the camera clips: that of its bits, wherever they lie in the word, or a lower maximum piled on."""
    top = int(frames.max())
    step = 1
    if frames.dtype != np.uint8:
        # 10, 12 or 14 bits that fill the word from the top: the lowest bits of all pixels are zero.
        used = int(np.bitwise_or.reduce(frames, axis=None))
        step = used & -used or 1
    scale = next((scale * step for scale in FULL_SCALES if top <= scale * step), FULL_SCALES[-1])
    return top if top < scale and _piled(frames, top, step) else scale


def _piled(frames: NDArray[np.unsignedinteger[Any]], top: int, step: int) -> bool:
    """True when far more pixels are at the maximum than at any of the levels just below: the camera clips there."""
    varied = frames[~_constant(frames)]
    at_top = np.count_nonzero(varied == top)
    if at_top <= CLIPPED_SHARE * varied.size:
        return False
    low = max(top - LEVELS_BELOW * step, 0)
    near = varied[(varied >= low) & (varied < top)]
    below = np.bincount((near.astype(np.int64) - low) // step, minlength=1)
    return bool(at_top > CLIPPED_PILE * below.max())


class _Peak:
    """A fringe peak: frequency (f_x, f_y) in cycles/um, visibility, and peak over the median of its neighbourhood."""

    __slots__ = ("contrast", "frequency", "snr")

    def __init__(self, frequency: tuple[float, float], contrast: float, snr: float) -> None:
        self.frequency = frequency
        self.contrast = contrast
        self.snr = snr


class _FringeFinder:
    """Finds fringe peaks in Hann-windowed spectra of one frame size; holds the window and the frequency axes."""

    def __init__(self, optics: Optics, shape: tuple[int, ...]) -> None:
        self._optics = optics
        ny, nx = shape
        self._window = torch.from_numpy(np.outer(np.hanning(ny), np.hanning(nx)).astype(np.float32))
        self._fy = np.fft.fftfreq(ny, optics.pixel_size_um)
        self._fx = np.fft.rfftfreq(nx, optics.pixel_size_um)
        self._pupil = optics.objective_na / optics.wavelength_um
        self._mask: tuple[tuple[float, float], NDArray[np.bool_]] | None = None

    def _amplitude(self, frame: NDArray[Any]) -> NDArray[np.float32]:
        values = torch.from_numpy(frame.astype(np.float32)) * self._window
        amplitude: NDArray[np.float32] = torch.fft.rfft2(values).abs().numpy()
        return amplitude

    def carrier(self, frame: NDArray[Any]) -> tuple[float, float]:
        """Sideband of the normal frame anywhere outside the zero order, in the half plane f_x >= 0."""
        amplitude = self._amplitude(frame)
        nyquist = 0.5 / self._optics.pixel_size_um
        radius = np.hypot(self._fy[:, None], self._fx[None, :])
        outside = radius > min(ZERO_ORDER_FRACTION * self._pupil, 0.3 * nyquist)
        return self._refine(amplitude, np.where(outside, amplitude, 0.0))

    def carrier_of(self, frames: NDArray[Any], normal_frame: int) -> tuple[float, float]:
        """The normal frame's peak; where that frame is lost, the centre of the circle that the others' peaks lie on."""
        lit = np.flatnonzero(_lit(frames))
        if normal_frame in lit or lit.size < 4:
            return self.carrier(frames[normal_frame])
        chosen = lit[np.unique(np.linspace(0, lit.size - 1, RING_FRAMES).round().astype(int))]
        peaks = np.array([self.carrier(frames[i]) for i in chosen])
        span = 1.0 / self._optics.pixel_size_um
        peaks[:, 1] -= span * np.round((peaks[:, 1] - peaks[0, 1]) / span)
        centre = _circle_centre(peaks)
        return float(centre[0]), float(centre[1])

    def around(self, frame: NDArray[Any], carrier: tuple[float, float]) -> _Peak:
        """The peak inside the pupil about the carrier."""
        amplitude = self._amplitude(frame)
        inside = self._inside(carrier)
        frequency = self._refine(amplitude, np.where(inside, amplitude, 0.0))
        peak = float(amplitude[inside].max()) if inside.any() else 0.0
        zero = float(amplitude[0, 0])
        noise = float(np.median(amplitude[inside])) if inside.any() else 0.0
        contrast = 2 * peak / zero if zero > 0 else 0.0
        return _Peak(frequency, min(contrast, 1.0), peak / noise if noise > 0 else 0.0)

    def _inside(self, carrier: tuple[float, float]) -> NDArray[np.bool_]:
        """Bins within the pupil about the carrier, on the circle of frequencies in y (a real frame wraps there)."""
        if self._mask is None or self._mask[0] != carrier:
            span = 1.0 / self._optics.pixel_size_um
            dy = (self._fy - carrier[1] + span / 2) % span - span / 2
            distance2 = dy[:, None] ** 2 + (self._fx[None, :] - carrier[0]) ** 2
            self._mask = (carrier, distance2 <= (self._pupil * 1.02) ** 2)
        return self._mask[1]

    def _refine(self, amplitude: NDArray[np.float32], candidates: NDArray[np.floating[Any]]) -> tuple[float, float]:
        """Sub-bin position by a log-parabola through three points of the Hann-windowed peak (0.011 bin rms)."""
        iy, ix = np.unravel_index(int(np.argmax(candidates)), candidates.shape)
        ny, nx = amplitude.shape
        column = [float(amplitude[(iy + d) % ny, ix]) for d in (-1, 0, 1)]
        row = [float(amplitude[iy, min(abs(ix + d), nx - 1)]) for d in (-1, 0, 1)]
        fy = float(self._fy[iy]) + _log_parabola(column) * float(self._fy[1])
        fx = float(self._fx[ix]) + _log_parabola(row) * float(self._fx[1])
        return fx, fy


def _circle_centre(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre of the circle through points [n, 2], by algebraic least squares (Kasa 1976), in rounds without outliers."""
    design = np.column_stack([2 * points, np.ones(len(points))])
    squares = (points**2).sum(1)
    kept = np.ones(len(points), bool)
    centre = points.mean(0)
    for _ in range(4):
        solution = np.linalg.lstsq(design[kept], squares[kept], rcond=None)[0]
        centre = solution[:2]
        radius = np.hypot(*(points - centre).T)
        off = np.abs(radius - np.median(radius[kept]))
        kept = off <= max(3 * 1.4826 * float(np.median(off)), 1e-6)
        if kept.sum() < 4:
            break
    found: NDArray[np.float64] = centre
    return found


def _log_parabola(values: list[float]) -> float:
    """Offset of the vertex from the middle of three positive values, within half a bin."""
    left, middle, right = (math.log(max(v, 1e-12)) for v in values)
    curvature = left - 2 * middle + right
    if curvature >= 0:
        return 0.0
    return max(-0.5, min(0.5, 0.5 * (left - right) / curvature))


def measure_illumination(
    frames: NDArray[np.unsignedinteger[Any]], optics: Optics, normal_frame: int
) -> tuple[tuple[float, float], NDArray[np.float64]]:
    """Carrier (cycles/um) and transverse illumination vectors [frame, 2] in rad/um, measured from the fringe peaks.

    The normal frame's peak is the carrier by definition; the others lie about it at k_in / 2 pi. Where the normal frame is
    lost, the centre of their circle is the carrier. A lost frame's vector means nothing.
    """
    carrier, k_in, _ = _measure_vectors(frames, optics, normal_frame)
    return carrier, k_in


def _measure_vectors(
    frames: NDArray[np.unsignedinteger[Any]], optics: Optics, normal_frame: int
) -> tuple[tuple[float, float], NDArray[np.float64], NDArray[np.bool_]]:
    """As :func:`measure_illumination`, and True [frame] where the peak stands out, so that its vector means something."""
    finder = _FringeFinder(optics, frames.shape[1:])
    carrier = finder.carrier_of(frames, normal_frame)
    span = 1.0 / optics.pixel_size_um
    k_in = np.empty((len(frames), 2))
    lit = _lit(frames)
    clear = lit.copy()
    for i, frame in enumerate(frames):
        peak = finder.around(frame, carrier)
        fx, fy = peak.frequency
        dy = (fy - carrier[1] + span / 2) % span - span / 2
        k_in[i] = 2 * np.pi * (fx - carrier[0]), 2 * np.pi * dy
        clear[i] &= peak.snr >= MIN_PEAK and peak.contrast >= MIN_CONTRAST
    if lit[normal_frame]:
        k_in[normal_frame] = 0.0
    return carrier, k_in, clear


def retrieve_fields(
    stack: HologramStack, recipe: Recipe, *, fringes: FringeReport | None = None, device: str = "cpu"
) -> FieldStack:
    """Complex fields w = u / u_illumination of a hologram stack at the recipe's lateral pitch.

    ``fringes``: what :func:`measure_fringes` said of the same stack, where it was asked before; else it is asked here.

    Frames without signal (lost, all of one value) and those that the camera saturated are dropped and named by ``kept``;
    whether enough remain is the verdict's to say. Where the normal frame is among them, the one nearest to the axis stands in.
    Raises ReconstructionError when no frame holds fringes, BadField when the pixels would not be square, and for a reference,
    vectors, a normal frame or ``fringes`` that do not belong to the holograms.
    """
    _demand(stack, fringes)
    fringes = fringes or measure_fringes(stack)
    usable = (fringes.contrast > 1e-3) & _lit(stack.holograms) & ~_overexposed(fringes, recipe)
    if stack.reference is not None:
        session = SESSIONS.of(stack, recipe, device)
        kept = _demand_any(usable & session.lit, fringes)
        demodulator, measured, clear = session.demodulator, session.k_in_rad_um[kept], session.clear[kept]
        whole = len(kept) == len(session.inverse)
        w = demodulator(stack.holograms if whole else stack.holograms[kept])
        w.mul_(session.inverse if whole else session.inverse[torch.from_numpy(kept)])
    else:
        kept = _demand_any(usable, fringes)
        carrier, k_all, clear_all = _measure_vectors(stack.holograms, stack.optics, stack.normal_frame)
        measured, clear = k_all[kept], clear_all[kept]
        demodulator = _Demodulator(stack.optics, stack.holograms.shape[1:], carrier, recipe, device)
        w = _remove_tilt(demodulator(stack.holograms[kept]), measured, carrier, demodulator)
    normal = _normal(kept, stack.normal_frame, measured)
    w, rms = remove_background(w, polynomial=stack.reference is None)
    delay = _delay(w[normal])
    if delay < 0:
        # The other sideband was found: its field is the complex conjugate, its vectors point the other way.
        w = w.conj().resolve_conj()
        measured = -measured
    given = None if stack.illumination_rad_um is None else np.asarray(stack.illumination_rad_um, np.float64)[kept]
    misfit = None
    if given is not None:
        at_normal = normal if kept[normal] == stack.normal_frame else None
        misfit = _misfit(given, measured, clear, at_normal, signed=delay != 0) / _rim(stack.optics)
    return FieldStack(
        w=w.cpu().numpy(),
        k_in_rad_um=measured if given is None else given,
        pixel_um=demodulator.pitch_um,
        normal_frame=normal,
        optics=stack.optics,
        fringes=fringes,
        kept=kept,
        background_rms_rad=rms.double().cpu().numpy(),
        measured_rad_um=measured,
        illumination_misfit=misfit,
    )


def _demand(stack: HologramStack, fringes: FringeReport | None) -> None:
    """The readers hold a file to this; a stack made by hand is held to it here. Raises BadField."""
    shape = stack.holograms.shape
    if len(shape) != 3 or 0 in shape:
        raise BadField(f"holograms: shape {shape}; [angle, y, x] is needed, with at least one of each.", action=STACK_ACTION)
    frames = shape[0]
    if not 0 <= stack.normal_frame < frames:
        raise BadField(
            f"normal_frame: {stack.normal_frame}; it must lie in 0..{frames - 1}, for there are {frames} frames.",
            action=STACK_ACTION,
        )
    if stack.reference is not None and stack.reference.shape != shape:
        raise BadField(
            f"reference: shape {stack.reference.shape}; it must be that of the holograms, {shape}.", action=STACK_ACTION
        )
    if stack.illumination_rad_um is not None:
        given = np.asarray(stack.illumination_rad_um)
        if given.shape != (frames, 2):
            raise BadField(
                f"illumination_rad_um: shape {given.shape}; it must be {(frames, 2)}, (k_x, k_y) of each frame.",
                action=STACK_ACTION,
            )
        finite = np.isfinite(given).all(1)
        if not finite.all():
            at = int(np.argmin(finite))
            raise BadField(f"illumination_rad_um: {given[at]} at frame {at}; it must be finite.", action=STACK_ACTION)
    if fringes is not None and len(fringes.contrast) != frames:
        raise BadField(
            f"fringes: a report of {len(fringes.contrast)} frames; it must be of the stack's {frames}.", action=STACK_ACTION
        )


def _rim(optics: Optics) -> float:
    """NA k0, rad/um."""
    return 2 * math.pi * optics.objective_na / optics.wavelength_um


def _misfit(
    given: NDArray[np.float64],
    measured: NDArray[np.float64],
    clear: NDArray[np.bool_],
    normal: int | None,
    *,
    signed: bool,
) -> float:
    """Rms distance of the given vectors [frame, 2] from the measured ones over the ``clear`` frames; NaN without any.

    The peaks show directions relative to the normal frame's (to their circle's centre where that is lost: ``normal`` None);
    where the axis lies is the file's to say. ``signed`` False: nothing in the field tells the sideband from its conjugate.
    """

    def apart(sign: int) -> float:
        away = given - sign * measured
        away = away - (away[normal] if normal is not None else away[clear].mean(0))
        return math.sqrt(float((away[clear] ** 2).sum(1).mean()))

    if not clear.any():
        return math.nan
    return apart(1) if signed else min(apart(1), apart(-1))


def _overexposed(fringes: FringeReport, recipe: Recipe) -> NDArray[np.bool_]:
    """True [frame] where single frames are saturated; where many are, none is dropped: the verdict has its word for that."""
    over: NDArray[np.bool_] = fringes.saturated_fraction > recipe.quality.max_saturated_fraction
    return over if over.mean() <= recipe.quality.max_lost_frames else np.zeros_like(over)


def _demand_any(usable: NDArray[np.bool_], fringes: FringeReport) -> NDArray[np.intp]:
    kept = np.flatnonzero(usable)
    if not kept.size:
        raise ReconstructionError(
            f"holograms: none of {len(usable)} frames holds fringes (the greatest contrast is "
            f"{fringes.contrast.max(initial=0.0):.2g}; more than 0.001 is needed)."
        )
    return kept


def _normal(kept: NDArray[np.intp], normal_frame: int, k_in: NDArray[np.float64]) -> int:
    """Position of the normal frame among the kept ones, or of the one nearest to the axis."""
    found = np.flatnonzero(kept == normal_frame)
    return int(found[0]) if found.size else int(np.argmin(np.hypot(k_in[:, 0], k_in[:, 1])))


def demodulate(
    frames: NDArray[np.unsignedinteger[Any]], optics: Optics, carrier_cycles_um: tuple[float, float], recipe: Recipe
) -> NDArray[np.complex64]:
    """Fields of frames [frame, y, x] at the recipe's lateral pitch with the carrier's nearest bin moved to the origin.

    Nothing else is taken out: tilt, fractional carrier and background remain, and cancel in a ratio of two such fields.
    """
    return _Demodulator(optics, frames.shape[1:], carrier_cycles_um, recipe, "cpu")(frames).numpy()


def _out_size(n: int, pixel_um: float, wanted_um: float) -> int:
    return max(16, 2 * round(n * pixel_um / wanted_um / 2))


@lru_cache(maxsize=64)
def _common_pitch(shape: tuple[int, ...], pixel_um: float, wanted_um: float) -> tuple[int, int]:
    """The part (ny, nx) of a frame, from its corner, whose two sides give one output pitch within 0.01 %.

    511 x 509 pixels do not: 1 % of magnification between the axes is 3 points of volume. The largest such part is taken,
    among equals the one whose FFT is quick. Raises BadField when more than MAX_CROP of a side would go.
    """
    ny, nx = shape
    best: tuple[float, int, int] | None = None
    rows = range(ny, int(ny * (1 - MAX_CROP)), -1)
    columns = range(nx, int(nx * (1 - MAX_CROP)), -1)
    for y in rows:
        for x in columns:
            lost = 1 - y * x / (ny * nx) + 1e-5 * (_largest_prime(y) + _largest_prime(x))
            if best is not None and lost >= best[0]:
                continue
            pitches = y / _out_size(y, pixel_um, wanted_um), x / _out_size(x, pixel_um, wanted_um)
            if abs(pitches[0] / pitches[1] - 1) <= 1e-4:
                best = (lost, y, x)
    if best is None:
        raise BadField(
            f"holograms: shape {ny} x {nx} pixels of {pixel_um} um gives no common pitch near {wanted_um} um for both sides, "
            f"even without {MAX_CROP:.0%} of a side. Crop the frames to a square."
        )
    return best[1], best[2]


@lru_cache(maxsize=1024)
def _largest_prime(n: int) -> int:
    found, prime = 1, 2
    while n > 1:
        while n % prime == 0:
            found, n = prime, n // prime
        prime += 1
    return found


class _Demodulator:
    """Sideband to the origin, pupil cut, output pitch: one geometry, any number of frames."""

    def __init__(
        self, optics: Optics, shape: tuple[int, ...], carrier: tuple[float, float], recipe: Recipe, device: str
    ) -> None:
        self._device = device
        ny, nx = self._shape = _common_pitch(shape, optics.pixel_size_um, recipe.reconstruction.voxel_um[2])
        wanted = recipe.reconstruction.voxel_um[2]
        self._out = tuple(_out_size(n, optics.pixel_size_um, wanted) for n in self._shape)
        self.pitch_um = nx * optics.pixel_size_um / self._out[1]
        fx0, fy0 = carrier
        self._bins = (round(fy0 * ny * optics.pixel_size_um), round(fx0 * nx * optics.pixel_size_um))
        self.shift_rad_um = (
            2 * math.pi * self._bins[1] / (nx * optics.pixel_size_um),
            2 * math.pi * self._bins[0] / (ny * optics.pixel_size_um),
        )
        pupil = optics.objective_na / optics.wavelength_um
        self._rows, self._source_rows = self._axis(ny, optics.pixel_size_um, self._out[0], self._bins[0], pupil)
        self._columns, self._source_columns = self._axis(nx, optics.pixel_size_um, self._out[1], self._bins[1], pupil)
        fy = self._rows / (ny * optics.pixel_size_um)
        fx = self._columns / (nx * optics.pixel_size_um)
        # The pupil is centred on the carrier itself, not on the nearest bin.
        ry, rx = fy + self._bins[0] / (ny * optics.pixel_size_um) - fy0, fx + self._bins[1] / (nx * optics.pixel_size_um) - fx0
        self._pupil = torch.from_numpy(ry[:, None] ** 2 + rx[None, :] ** 2 <= pupil**2).to(device)
        # A real frame's spectrum is half redundant: what the pupil cuts of the other half plane is the conjugate of its mirror.
        other = self._source_columns > nx // 2
        self._other = torch.from_numpy(other).to(device) if other.any() else None
        self._half_columns = np.where(other, nx - self._source_columns, self._source_columns)
        self._half_rows = np.where(other[None, :], (-self._source_rows[:, None]) % ny, self._source_rows[:, None])
        self._scale = self._out[0] * self._out[1] / (ny * nx)

    @staticmethod
    def _axis(n: int, pixel: float, n_out: int, shift: int, pupil: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        reach = min(math.ceil(pupil * n * pixel) + 1, (n_out - 1) // 2, (n - 1) // 2)
        bins = np.arange(-reach, reach + 1, dtype=np.intp)
        return bins, (bins + shift) % n

    def __call__(self, frames: NDArray[np.unsignedinteger[Any]]) -> Tensor:
        """Complex field of each frame, complex64 [frame, y, x] at the output pitch."""
        ny, nx = self._shape
        out = torch.empty((len(frames), *self._out), dtype=torch.complex64, device=self._device)
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            block = torch.from_numpy(frames[start : start + FRAMES_AT_ONCE, :ny, :nx].astype(np.float32)).to(self._device)
            spectrum = torch.fft.rfft2(block.sub_(block.mean((-2, -1), keepdim=True)))
            cut = spectrum[:, self._half_rows, self._half_columns[None, :]] * self._pupil
            if self._other is not None:
                cut = torch.where(self._other, cut.conj(), cut)
            embedded = torch.zeros((len(block), *self._out), dtype=torch.complex64, device=self._device)
            embedded[:, (self._rows % self._out[0])[:, None], (self._columns % self._out[1])[None, :]] = cut * self._scale
            out[start : start + len(block)] = torch.fft.ifft2(embedded)
        return out


class _Session:
    """What a set of sample-free frames gives once for all its acquisitions.

    ``inverse``: 1/field [frame, y, x]; ``lit``: [frame], False where one is lost; ``clear``: where its vector means something.
    """

    __slots__ = ("clear", "demodulator", "inverse", "k_in_rad_um", "lit")

    def __init__(
        self,
        inverse: Tensor,
        k_in_rad_um: NDArray[np.float64],
        demodulator: _Demodulator,
        lit: NDArray[np.bool_],
        clear: NDArray[np.bool_],
    ) -> None:
        self.inverse = inverse
        self.k_in_rad_um = k_in_rad_um
        self.demodulator = demodulator
        self.lit = lit
        self.clear = clear


class _SessionCache:
    """Demodulated references by content: a session shares one reference among hundreds of acquisitions.

    Holds the last ``capacity`` sessions (40 MB each at the default geometry): instruments alternate between few.
    """

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def of(self, stack: HologramStack, recipe: Recipe, device: str) -> _Session:
        """The session of the stack's reference, made on first sight."""
        if stack.reference is None:
            raise ReconstructionError("The acquisition has no reference frames to make a session of.")
        digest = hashlib.blake2b(np.ascontiguousarray(stack.reference).data, digest_size=16)
        digest.update(repr((stack.optics, stack.normal_frame, recipe.reconstruction, device)).encode())
        key = digest.hexdigest()
        with self._lock:
            found = self._sessions.get(key)
            if found is None:
                found = self._make(stack.reference, stack.optics, stack.normal_frame, recipe, device)
            self._sessions[key] = found
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._capacity:
                self._sessions.popitem(last=False)
        return found

    @staticmethod
    def _make(frames: NDArray[np.unsignedinteger[Any]], optics: Optics, normal: int, recipe: Recipe, device: str) -> _Session:
        carrier, k_in, clear = _measure_vectors(frames, optics, normal)
        demodulator = _Demodulator(optics, frames.shape[1:], carrier, recipe, device)
        return _Session(_inverse(demodulator(frames)), k_in, demodulator, _lit(frames), clear)


SESSIONS = _SessionCache()


def _inverse(reference: Tensor) -> Tensor:
    """1 / reference, bounded where the reference has no light."""
    power = reference.abs().square()
    floor = 1e-3 * power.mean((-2, -1), keepdim=True)
    return reference.conj() / torch.maximum(power, floor)


def _remove_tilt(u: Tensor, k_in: NDArray[np.float64], carrier: tuple[float, float], demodulator: _Demodulator) -> Tensor:
    """Without a reference: take out the plane wave that the fringe peak names; the rest is the background fit's."""
    ny, nx = u.shape[-2:]
    y = torch.arange(ny, device=u.device) * demodulator.pitch_um
    x = torch.arange(nx, device=u.device) * demodulator.pitch_um
    k = k_in + 2 * np.pi * np.asarray(carrier) - np.asarray(demodulator.shift_rad_um)
    kx = torch.from_numpy(k[:, 0]).float().to(u.device)
    ky = torch.from_numpy(k[:, 1]).float().to(u.device)
    phase = kx[:, None, None] * x[None, None, :] + ky[:, None, None] * y[None, :, None]
    return u * torch.polar(torch.ones_like(phase), -phase)


def remove_background(w: Tensor, *, polynomial: bool) -> tuple[Tensor, Tensor]:
    """Divide each frame by the smooth background outside its object.

    The background is a plane (a second-order polynomial when there was no reference) in phase and the median in amplitude,
    fitted on a coarse grid to the pixels that are near the background's own phase, in rounds that shrink to them. Returns
    the fields [frame, y, x] and the phase rms [frame] of the background that is left, in rad.
    """
    step = max(1, min(w.shape[-2:]) // 80)
    coarse = w[:, ::step, ::step].contiguous()
    order = 2 if polynomial else 1
    terms = _polynomial_terms(coarse.shape[-2:], order, w.device)
    flat = terms.flatten(1)
    total = coarse.new_zeros((len(w), len(terms)), dtype=torch.float32)
    gain = coarse.new_ones(len(w), dtype=torch.float32)
    for limit in (1.5, 0.6, 0.3, 0.2):
        away = _away_from_object(coarse, limit).flatten(1)
        values = coarse.flatten(1)
        unit = torch.where(away, values / values.abs().clamp_min(1e-6), torch.zeros_like(values))
        offset = torch.angle(unit.sum(1))
        residual = torch.angle(values * torch.polar(torch.ones_like(offset), -offset)[:, None])
        weight = (away & (residual.abs() < limit)).float()
        coefficients = _weighted_fit(flat, residual, weight)
        coefficients[:, 0] += offset
        amplitude = _weighted_median(values.abs(), weight)
        coarse = _divide_surface(coarse, coefficients, terms, amplitude)
        total, gain = total + coefficients, gain * amplitude
    away = _away_from_object(coarse, 0.2)
    phase = torch.angle(coarse)
    rms = ((phase.square() * away).flatten(1).sum(1) / away.flatten(1).float().sum(1).clamp_min(1)).sqrt()
    stop = [((n - 1) / step) / ((n - 1) // step) for n in w.shape[-2:]]
    if polynomial:
        return _divide_surface(w, total, _polynomial_terms(w.shape[-2:], order, w.device, stop), gain), rms
    rows, columns = _plane(w.shape[-2:], total, stop)
    return (w * (rows / gain[:, None])[:, :, None]).mul_(columns[:, None, :]), rms


def _divide_surface(w: Tensor, coefficients: Tensor, terms: Tensor, amplitude: Tensor) -> Tensor:
    surface = torch.einsum("ft,tyx->fyx", coefficients, terms)
    return w * torch.polar((1 / amplitude)[:, None, None].expand_as(surface), -surface)


def _plane(shape: tuple[int, ...], coefficients: Tensor, stop: Sequence[float]) -> tuple[Tensor, Tensor]:
    """exp(-i (c_0 + c_y y + c_x x)) as a product of two lines, [frame, y] and [frame, x]: no sine for each pixel."""
    lines = [torch.linspace(0, end, n, device=coefficients.device) - 0.5 for n, end in zip(shape, stop, strict=True)]
    c0, cy, cx = coefficients.T[:, :, None]
    phases = c0 + cy * lines[0], cx * lines[1]
    rows, columns = (torch.polar(torch.ones_like(phase), -phase) for phase in phases)
    return rows, columns


def _away_from_object(w: Tensor, limit: float) -> Tensor:
    """True [frame, y, x] outside the (smoothed, dilated) regions where the phase departs from the frame's mode.

    ``w`` is the coarse grid, about 80 pixels across.
    """
    unit = w / w.abs().clamp_min(1e-6)
    mode = unit.mean((-2, -1), keepdim=True)
    mode = mode / mode.abs().clamp_min(1e-6)
    departure = (unit * mode.conj() - 1).abs()[:, None]
    smooth = torch.nn.functional.avg_pool2d(departure, 3, stride=1, padding=1, count_include_pad=False)
    marked = (smooth > limit).float()
    for size, padding in (((9, 1), (4, 0)), ((1, 9), (0, 4))):  # one side after the other: the same, at a quarter of the cost
        marked = torch.nn.functional.max_pool2d(marked, size, stride=1, padding=padding)
    outside = marked[:, 0] < 0.5
    # An object that fills the frame leaves no background: fall back to the edge.
    empty = outside.flatten(1).float().mean(1) < 0.02
    if bool(empty.any()):
        edge = torch.zeros_like(outside[0])
        edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = True, True, True, True
        outside[empty] = edge
    return outside


def _polynomial_terms(shape: tuple[int, ...], order: int, device: torch.device, stop: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """Monomials x^i y^j [term, y, x] over 0..``stop`` on each axis; the constant is term 0."""
    ny, nx = shape
    y = torch.linspace(0, stop[0], ny, device=device)[:, None].expand(ny, nx) - 0.5
    x = torch.linspace(0, stop[1], nx, device=device)[None, :].expand(ny, nx) - 0.5
    return torch.stack([x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)])


def _weighted_fit(terms: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Least squares per frame: terms [t, p], values and weight [f, p] -> coefficients [f, t]."""
    normal = torch.einsum("tp,fp,sp->fts", terms.double(), weight.double(), terms.double())
    right = torch.einsum("tp,fp,fp->ft", terms.double(), weight.double(), values.double())
    ridge = 1e-6 * torch.eye(len(terms), device=terms.device, dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(normal + ridge * weight.shape[1], right)
    return solution.float()


def _weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    marked = torch.where(weight > 0, values, torch.full_like(values, float("nan")))
    return torch.nan_to_num(marked.nanmedian(1).values, nan=1.0).clamp_min(1e-6)


def _delay(w: Tensor) -> float:
    """Summed phase of the object in one frame, 0 where there is none to speak of.

    Cells are denser than the medium, so it must be positive: a negative one is that of the conjugate sideband.
    """
    phase = unwrap(torch.angle(w)[None])
    strong = phase[phase.abs() > 0.5]
    return float(strong.sum()) if strong.numel() > 50 else 0.0
