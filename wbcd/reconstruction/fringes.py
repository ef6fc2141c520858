"""What the fringes of raw frames say: carrier, illumination vectors, contrast, saturation, lost and repeated frames."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.errors import BadField
from wbcd.recipe import ALGORITHMS
from wbcd.reconstruction.axis import CENTRAL, fit_pattern
from wbcd.records import Axis, FringeReport, HologramStack, Optics

ALGORITHM_VERSION = ALGORITHMS["axis"]
"""Of the fringes and the normal frame (axis, fringes). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

# The zero order and its halo reach NA/lambda (weak objects); sidebands are looked for outside this fraction of it.
ZERO_ORDER_FRACTION = 1.3
# 8-bit cameras stop at 255; 16-bit files hold 10, 12, 14 or 16 bits.
FULL_SCALES = (255, 1023, 4095, 16383, 65535)
# A camera that clips elsewhere piles pixels up there: more than this share of all, and so many times what a level below holds.
# (Noise-free fringes, whose crests are flat, reach 2.4 times; a tail of shot noise falls towards the maximum.)
CLIPPED_SHARE = 1e-4
CLIPPED_PILE = 5.0
LEVELS_BELOW = 8
# A frame with less than this share of the median light is lost.
DARK_SHARE = 0.1
# Peaks on the illumination circle that are asked for its centre when the normal frame is lost.
RING_FRAMES = 16
# Noise reaches 4 times the median of its spectrum among 100,000 bins.
MIN_PEAK = 10.0
MIN_CONTRAST = 0.02
# A pattern is believed when so many of the lit frames have a clear peak.
CLEAR_SHARE = 0.6
# Vectors that a file states agree with the fringes' directions within this much of the NA, rms; see max_illumination_misfit.
VECTORS_AGREE = 0.02
STACK_ACTION = "Correct the stack that is handed over; the readers of wbcd make none such."


def measure_fringes(stack: HologramStack) -> FringeReport:
    """Carrier, contrast, saturation and level of the raw frames; never raises for bad optics, the verdict judges.

    Equation: visibility = 2 |sideband| / |zero order| of the Hann-windowed frame. Raises BadField for a stack whose parts do
    not belong together.
    """
    check_stack(stack)
    frames = stack.holograms
    peaks = _FringeFinder(stack.optics, frames.shape[1:])
    axis, carrier, found = _axis_and_peaks(stack, peaks)
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
        axis=axis,
    )


def find_axis(stack: HologramStack) -> Axis:
    """Which frame is lit along the optical axis, or where the axis lies among the sidebands where none is.

    The frame that the file states is held against the fringes of all frames: it is taken where they draw a pattern about it, or
    too little of one to say. Else, and where the file states none, the pattern decides. Raises BadField as
    :func:`measure_fringes` does.
    """
    check_stack(stack)
    return _axis_and_peaks(stack, _FringeFinder(stack.optics, stack.holograms.shape[1:]))[0]


def _axis_and_peaks(stack: HologramStack, finder: _FringeFinder) -> tuple[Axis, tuple[float, float], list[_Peak]]:
    """The axis, the carrier in the holograms that follows from it, and each frame's peak about it."""
    frames = stack.holograms
    stated = stack.normal_frame
    carrier: tuple[float, float] | None = None
    found: list[_Peak] | None = None
    if stated is not None:
        carrier = finder.carrier_of(frames, stated)
        found = [finder.around(frame, carrier) for frame in frames]
        if _confirmed(stack, finder, stated, carrier, found):
            return Axis(stated, stated=stated, uncertainty_na=0.0), carrier, found
    axis = AXES.of(stack, finder)
    if carrier is None or found is None or axis.normal_frame != stated or axis.carrier_cycles_um is not None:
        carrier = axis.carrier_cycles_um or finder.carrier_of(frames, axis.normal_frame or 0)
        found = [finder.around(frame, carrier) for frame in frames]
    return axis, carrier, found


def _confirmed(
    stack: HologramStack, finder: _FringeFinder, stated: int, carrier: tuple[float, float], found: list[_Peak]
) -> bool:
    """Do the peaks about the stated frame's carrier draw a pattern about it? What costs nothing is looked at first."""
    lit = lit_frames(stack.holograms)
    if not lit[stated] and stack.reference is not None:
        return False  # the circle's centre stood in for it: that says nothing of the stated frame
    clear = lit & np.array([peak.clear for peak in found])
    if clear.sum() < CLEAR_SHARE * lit.sum():
        return False
    away = np.array([finder.offset(peak.frequency, carrier) for peak in found]) / finder.pupil
    pattern = fit_pattern(away, clear)
    given = stack.illumination_rad_um
    if given is not None:
        length = np.hypot(*np.asarray(given, np.float64).T)
        if length[stated] > CENTRAL * length.max():
            return False
    return pattern is not None and pattern.distance((0.0, 0.0)) <= pattern.reach


class _AxisCache:
    """Axes by the content of the sample-free frames: a session shares them among hundreds of acquisitions."""

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._axes: OrderedDict[bytes, Axis] = OrderedDict()

    def of(self, stack: HologramStack, finder: _FringeFinder) -> Axis:
        """The axis of the stack's reference, looked for on first sight; without a reference in the stack's own frames."""
        if stack.reference is None:
            return _searched(stack, finder)
        digest = hashlib.blake2b(np.ascontiguousarray(stack.reference).data, digest_size=16)
        given = stack.illumination_rad_um
        digest.update(repr((stack.optics, stack.normal_frame, None if given is None else np.asarray(given).tolist())).encode())
        key = digest.digest()
        with self._lock:
            axis = self._axes.get(key) or _searched(stack, finder)
            self._axes[key] = axis
            self._axes.move_to_end(key)
            while len(self._axes) > self._capacity:
                self._axes.popitem(last=False)
        return axis


AXES = _AxisCache()


def _searched(stack: HologramStack, finder: _FringeFinder) -> Axis:
    """The axis by the pattern of all frames' strongest peaks, sample-free frames before others."""
    frames = stack.holograms if stack.reference is None else stack.reference
    stated = stack.normal_frame
    lit = lit_frames(frames)
    peaks = [finder.strongest(frame) for frame in frames]
    clear = lit & np.array([peak.clear for peak in peaks])
    if clear.sum() < max(CLEAR_SHARE * lit.sum(), 1):
        return Axis(stated, stated=stated)  # the fringes say nothing: contrast and sideband are judged as they are
    places = finder.together([peak.frequency for peak in peaks], clear)
    spread = float(np.sqrt(((places[clear] - places[clear].mean(0)) ** 2).sum(1).mean())) / finder.pupil
    pattern = fit_pattern(places / finder.pupil, clear)
    centre = None if pattern is None else finder.usual((pattern.centre[0] * finder.pupil, pattern.centre[1] * finder.pupil))
    by_vectors = _by_vectors(stack.illumination_rad_um, places, clear, finder)
    if by_vectors is not None and (pattern is None or pattern.distance(by_vectors[0] / finder.pupil) <= pattern.reach):
        # Vectors that agree with all peaks tell the axis better than the pattern's middle, which may lie beside it.
        place, normal = by_vectors
        carrier = None if normal is not None else finder.usual((float(place[0]), float(place[1])))
        return Axis(normal, carrier, stated, 0.0)
    if pattern is None or centre is None:
        return _unknown(stated, spread)
    if pattern.central:
        normal = stated if stated in pattern.central else pattern.central[0]
        return Axis(normal, None, stated, 0.0)
    return Axis(None, centre, stated, pattern.uncertainty)


def _unknown(stated: int | None, spread: float) -> Axis:
    """Too few directions to draw a pattern: the file's word is all there is; without one the axis may be anywhere."""
    return Axis(stated, stated=stated, uncertainty_na=None if stated is not None else max(spread, 1.0))


def _by_vectors(
    given: NDArray[np.float64] | None, places: NDArray[np.float64], clear: NDArray[np.bool_], finder: _FringeFinder
) -> tuple[NDArray[np.float64], int | None] | None:
    """Where the file's vectors put the axis among the peaks, and the frame lit along it; None where the two disagree."""
    if given is None:
        return None
    vectors = np.asarray(given, np.float64) / (2 * np.pi)
    for sign in (1, -1):  # the peaks of the other sideband show all vectors reversed
        axis = places - sign * vectors
        middle = np.median(axis[clear], 0)
        if np.sqrt(((axis[clear] - middle) ** 2).sum(1).mean()) <= VECTORS_AGREE * finder.pupil:
            length = np.hypot(*vectors.T)
            nearest = int(np.argmin(np.where(clear, length, np.inf)))
            normal = nearest if length[nearest] <= CENTRAL * length.max() else None
            return middle, normal
    return None


def check_stack(stack: HologramStack) -> None:
    """The readers hold a file to this; a stack made by hand is held to it here. Raises BadField."""
    shape = stack.holograms.shape
    if len(shape) != 3 or 0 in shape:
        raise BadField(f"holograms: shape {shape}; [angle, y, x] is needed, with at least one of each.", action=STACK_ACTION)
    frames = shape[0]
    if stack.normal_frame is not None and not 0 <= stack.normal_frame < frames:
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


def lit_frames(frames: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
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

    @property
    def clear(self) -> bool:
        """True when it stands out of noise and of the zero order's ripple."""
        return self.snr >= MIN_PEAK and self.contrast >= MIN_CONTRAST


class _FringeFinder:
    """Finds fringe peaks in Hann-windowed spectra of one frame size; holds the window and the frequency axes."""

    def __init__(self, optics: Optics, shape: tuple[int, ...]) -> None:
        self._optics = optics
        ny, nx = shape
        self._window = torch.from_numpy(np.outer(np.hanning(ny), np.hanning(nx)).astype(np.float32))
        self._fy = np.fft.fftfreq(ny, optics.pixel_size_um)
        self._fx = np.fft.rfftfreq(nx, optics.pixel_size_um)
        self._pupil = self.pupil = optics.objective_na / optics.wavelength_um
        self._span = 1.0 / optics.pixel_size_um
        self._mask: tuple[tuple[float, float], NDArray[np.bool_]] | None = None
        self._far: NDArray[np.bool_] | None = None

    def _amplitude(self, frame: NDArray[Any]) -> NDArray[np.float32]:
        values = torch.from_numpy(frame.astype(np.float32)) * self._window
        amplitude: NDArray[np.float32] = torch.fft.rfft2(values).abs().numpy()
        return amplitude

    def carrier(self, frame: NDArray[Any]) -> tuple[float, float]:
        """Sideband of the normal frame anywhere outside the zero order, in the half plane f_x >= 0."""
        amplitude = self._amplitude(frame)
        return self._refine(amplitude, np.where(self._outside(), amplitude, 0.0))

    def strongest(self, frame: NDArray[Any]) -> _Peak:
        """The same for any frame, with its visibility: wherever the light comes from."""
        amplitude = self._amplitude(frame)
        outside = self._outside()
        frequency = self._refine(amplitude, np.where(outside, amplitude, 0.0))
        peak, zero = float(amplitude[outside].max()), float(amplitude[0, 0])
        noise = float(np.median(amplitude[outside]))
        contrast = min(2 * peak / zero, 1.0) if zero > 0 else 0.0
        return _Peak(frequency, contrast, peak / noise if noise > 0 else 0.0)

    def _outside(self) -> NDArray[np.bool_]:
        """Bins outside the zero order."""
        if self._far is None:
            nyquist = 0.5 / self._optics.pixel_size_um
            radius = np.hypot(self._fy[:, None], self._fx[None, :])
            self._far = radius > min(ZERO_ORDER_FRACTION * self._pupil, 0.3 * nyquist)
        return self._far

    def offset(self, frequency: tuple[float, float], carrier: tuple[float, float]) -> tuple[float, float]:
        """From the carrier to a peak, in cycles/um, the short way round the circle of frequencies in y."""
        dy = (frequency[1] - carrier[1] + self._span / 2) % self._span - self._span / 2
        return frequency[0] - carrier[0], dy

    def together(self, frequencies: list[tuple[float, float]], clear: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Peaks [frame, 2] as points of one plane: each is known but for its sign and for whole spans of the lattice.

        Of the two half planes in which all may be looked for, that is taken in which the ``clear`` ones lie closest.
        """
        found = np.array(frequencies)
        best: tuple[float, NDArray[np.float64]] | None = None
        for half in (0, 1):
            turned = np.where(found[:, half, None] < 0, -found, found)
            angle = 2j * np.pi * turned / self._span
            middle = np.angle(np.exp(angle)[clear].mean(0)) * self._span / (2 * np.pi)
            placed = middle + (turned - middle + self._span / 2) % self._span - self._span / 2
            spread = float(np.hypot(*(placed[clear] - placed[clear].mean(0)).T).max())
            if best is None or spread < best[0] - 1e-9:
                best = spread, placed
        if best is None:
            raise BadField("No half plane holds the peaks.", action=STACK_ACTION)
        return best[1]

    def usual(self, frequency: tuple[float, float]) -> tuple[float, float]:
        """The same frequency as a carrier is given: within the camera's Nyquist limits, in the half plane f_x >= 0."""
        fx, fy = ((f + self._span / 2) % self._span - self._span / 2 for f in frequency)
        return (fx, fy) if fx >= 0 else (-fx, -fy)

    def carrier_of(self, frames: NDArray[Any], normal_frame: int) -> tuple[float, float]:
        """The normal frame's peak; where that frame is lost, the centre of the circle that the others' peaks lie on."""
        lit = np.flatnonzero(lit_frames(frames))
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
        frequency = self._beside(self._refine(amplitude, np.where(inside, amplitude, 0.0)), carrier)
        peak = float(amplitude[inside].max()) if inside.any() else 0.0
        zero = float(amplitude[0, 0])
        noise = float(np.median(amplitude[inside])) if inside.any() else 0.0
        contrast = 2 * peak / zero if zero > 0 else 0.0
        return _Peak(frequency, min(contrast, 1.0), peak / noise if noise > 0 else 0.0)

    def _beside(self, frequency: tuple[float, float], carrier: tuple[float, float]) -> tuple[float, float]:
        """A peak of the half plane f_x >= 0 as it lies about the carrier: what lies in the other half is seen as its mirror."""
        reach = self._pupil * 1.02 + float(self._fx[1])
        if math.hypot(*self.offset(frequency, carrier)) <= reach:
            return frequency
        fx, fy = -frequency[0], -frequency[1]
        return fx + self._span * round((carrier[0] - fx) / self._span), fy

    def _inside(self, carrier: tuple[float, float]) -> NDArray[np.bool_]:
        """Bins within the pupil about the carrier, on the circle of frequencies in y (a real frame wraps there).

        Where the pupil reaches over f_x = 0 or over Nyquist's limit, what it cuts there is the mirror of other bins.
        """
        if self._mask is None or self._mask[0] != carrier:
            span = 1.0 / self._optics.pixel_size_um
            dy = (self._fy - carrier[1] + span / 2) % span - span / 2
            distance2 = dy[:, None] ** 2 + (self._fx[None, :] - carrier[0]) ** 2
            my = (-self._fy - carrier[1] + span / 2) % span - span / 2
            mx = (-self._fx - carrier[0] + span / 2) % span - span / 2
            mirror2 = my[:, None] ** 2 + mx[None, :] ** 2
            self._mask = (carrier, np.minimum(distance2, mirror2) <= (self._pupil * 1.02) ** 2)
        return self._mask[1]

    def _refine(self, amplitude: NDArray[np.float32], candidates: NDArray[np.floating[Any]]) -> tuple[float, float]:
        """Sub-bin position by a log-parabola through three points of the Hann-windowed peak (0.011 bin rms)."""
        iy, ix = np.unravel_index(int(np.argmax(candidates)), candidates.shape)
        ny, nx = amplitude.shape
        column = [float(amplitude[(iy + d) % ny, ix]) for d in (-1, 0, 1)]
        # Beyond either edge of the half plane lies the mirror of what is in it.
        row = [float(amplitude[iy if 0 <= ix + d < nx else -iy % ny, min(abs(ix + d), nx - 1)]) for d in (-1, 0, 1)]
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
    carrier, k_in, _ = measure_vectors(frames, optics, normal_frame)
    return carrier, k_in


def measure_vectors(
    frames: NDArray[np.unsignedinteger[Any]],
    optics: Optics,
    normal_frame: int | None,
    carrier_cycles_um: tuple[float, float] | None = None,
) -> tuple[tuple[float, float], NDArray[np.float64], NDArray[np.bool_]]:
    """As :func:`measure_illumination`, and True [frame] where the peak stands out, so that its vector means something.

    ``carrier_cycles_um``: where no frame is lit along the axis; see :class:`wbcd.records.Axis`.
    """
    finder = _FringeFinder(optics, frames.shape[1:])
    carrier = carrier_cycles_um or finder.carrier_of(frames, normal_frame or 0)
    span = 1.0 / optics.pixel_size_um
    k_in = np.empty((len(frames), 2))
    lit = lit_frames(frames)
    clear = lit.copy()
    for i, frame in enumerate(frames):
        peak = finder.around(frame, carrier)
        fx, fy = peak.frequency
        dy = (fy - carrier[1] + span / 2) % span - span / 2
        k_in[i] = 2 * np.pi * (fx - carrier[0]), 2 * np.pi * dy
        clear[i] &= peak.snr >= MIN_PEAK and peak.contrast >= MIN_CONTRAST
    if normal_frame is not None and lit[normal_frame]:
        k_in[normal_frame] = 0.0
    return carrier, k_in, clear
