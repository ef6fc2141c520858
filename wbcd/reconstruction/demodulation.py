"""Demodulation by the Fourier transform method (Takeda 1982; Cuche 2000 for off-axis holography).

The sideband of each frame is moved by one integer shift, cut by the objective's pupil, and brought to the output pitch. What a
session's sample-free frames give is kept for all its acquisitions.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.errors import BadField, ReconstructionError
from wbcd.recipe import Recipe
from wbcd.reconstruction.fringes import lit_frames, measure_vectors
from wbcd.records import Axis, HologramStack, Optics

FRAMES_AT_ONCE = 7
# Frames whose sides give no common pitch are cropped by at most this share of a side.
MAX_CROP = 0.05


def demodulate(
    frames: NDArray[np.unsignedinteger[Any]], optics: Optics, carrier_cycles_um: tuple[float, float], recipe: Recipe
) -> NDArray[np.complex64]:
    """Fields of frames [frame, y, x] at the recipe's lateral pitch with the carrier's nearest bin moved to the origin.

    Nothing else is taken out: tilt, fractional carrier and background remain, and cancel in a ratio of two such fields.
    """
    return Demodulator(optics, frames.shape[1:], carrier_cycles_um, recipe, "cpu")(frames).numpy()


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


class Demodulator:
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
        demodulator: Demodulator,
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

    def of(self, stack: HologramStack, axis: Axis, recipe: Recipe, device: str) -> _Session:
        """The session of the stack's reference, made on first sight."""
        if stack.reference is None:
            raise ReconstructionError("The acquisition has no reference frames to make a session of.")
        digest = hashlib.blake2b(np.ascontiguousarray(stack.reference).data, digest_size=16)
        digest.update(repr((stack.optics, axis.normal_frame, axis.carrier_cycles_um, recipe.reconstruction, device)).encode())
        key = digest.hexdigest()
        with self._lock:
            found = self._sessions.get(key)
            if found is None:
                found = self._make(stack.reference, stack.optics, axis, recipe, device)
            self._sessions[key] = found
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._capacity:
                self._sessions.popitem(last=False)
        return found

    @staticmethod
    def _make(frames: NDArray[np.unsignedinteger[Any]], optics: Optics, axis: Axis, recipe: Recipe, device: str) -> _Session:
        carrier, k_in, clear = measure_vectors(frames, optics, axis.normal_frame, axis.carrier_cycles_um)
        demodulator = Demodulator(optics, frames.shape[1:], carrier, recipe, device)
        return _Session(_inverse(demodulator(frames)), k_in, demodulator, lit_frames(frames), clear)


SESSIONS = _SessionCache()


def _inverse(reference: Tensor) -> Tensor:
    """1 / reference, bounded where the reference has no light."""
    power = reference.abs().square()
    floor = 1e-3 * power.mean((-2, -1), keepdim=True)
    return reference.conj() / torch.maximum(power, floor)
