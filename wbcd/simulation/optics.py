"""Scattering of tilted plane waves by a refractive-index volume: a non-paraxial multi-slice, batched over angles.

    (d^2/dz^2 + K_z^2) u = -V u,  K_z = sqrt(k^2 + laplacian_xy),  V = k0^2 (n^2 - n_m^2)

One-way and first order in V the field obeys u' = i K_z u + i/(2 K_z) V u (Born; multi-layer Born, Chen et al. 2020). Each slice
here takes

    u+ = P_half [u' + (k_z0/K_z) (exp(i D) - 1) u'],   u' = P_half u,   D = (sqrt(k_z0^2 + V) - k_z0) dz

P the exact angular spectrum, k_z0 of the illumination: the screen D is exact for a layered medium at the angle of the
illumination (it holds the second, backward-coupling order), and the factor k_z0/K_z makes the light scattered into every other
angle exact to first order. The volume may have any pitch: the solver's own grid takes its Fourier series up to what
propagating waves can carry, and slices that hold the Ewald caps whole; both are filters, not averages.

A tilted wave is made periodic by carrying the nearest grid frequency in the field and the remainder in the spectrum's shift.
Fields are returned in the plane of the object's centre, over the illumination, cut by the objective's pupil.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.errors import BadValue
from wbcd.records import Optics, Triple

INSTRUMENT = Optics(wavelength_um=0.532, objective_na=1.2, medium_ri=1.337, pixel_size_um=0.0625)
ILLUMINATION_NA = 1.05
RING = 0.92
"""Greatest illumination NA over the objective's: the ring of light has to come through it."""
FRAMES = 49
CAMERA: tuple[int, int] = (512, 512)
# Propagating waves need a pitch below lambda / (2 n_m) = 0.199 um; a third finer keeps the products of field and screen.
PITCH_UM = 0.135
SLICE_UM = 0.3
ANGLES_AT_ONCE = 7
TAPER_UM = 1.5
# Width of the box beyond the object's own, over the object's depth: light at 45 degrees from top to middle is kept.
# Against Mie (12 um sphere, normal/tilted): 0.65: 0.5/2.3 %; 1.0: 0.4/2.0 %; 1.27: 0.3/1.7 %; 2.0: 0.3/1.5 %.
REACH = 1.0
LEAST_REACH_UM = 9.0
# Beyond this share of the wave number the light runs along the slices; one-way propagation has nothing to say of it.
GRAZING = 0.985


def illumination(
    optics: Optics = INSTRUMENT, *, na: float = ILLUMINATION_NA, frames: int = FRAMES, start_rad: float = 0.0
) -> NDArray[np.float64]:
    """Transverse wave vectors [frame, 2] (k_x, k_y) in rad/um: normal first, the rest on a circle."""
    angle = start_rad + 2 * np.pi * np.arange(frames - 1) / (frames - 1)
    ring = 2 * np.pi / optics.wavelength_um * na * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([np.zeros((1, 2)), ring])


@dataclass(frozen=True, slots=True)
class Scattered:
    """Spectrum of the scattered field over the illumination, FFT of w - 1, complex64 [angle, y, x].

    On the solver's periodic box of side ``box_um`` about the volume's middle voxel, in the plane through it, cut by no pupil.
    ``patch``: pixels of the camera that the box spans.
    """

    spectrum: Tensor
    box_um: float
    patch: int
    k_in_rad_um: NDArray[np.float64]
    optics: Optics


def fields(
    ri: NDArray[np.float32],
    voxel_um: Triple,
    optics: Optics,
    k_in: NDArray[np.float64],
    *,
    camera: tuple[int, int] = CAMERA,
    centre_um: NDArray[np.float64] | Triple = (0.0, 0.0, 0.0),
    slice_um: float = SLICE_UM,
    pitch_um: float = PITCH_UM,
    device: str = "cpu",
) -> Tensor:
    """Total field over the illumination, w = u/u_in, complex64 [angle, y, x] at the camera's pitch.

    ``ri`` [z, y, x]; ``centre_um``: place (z, y, x) of the volume's middle voxel from the middle of the camera's focal plane,
    one for all angles or one for each [angle, 3] (an object that moves during the scan).
    """
    scattered = scatter(ri, voxel_um, optics, k_in, slice_um=slice_um, pitch_um=pitch_um, device=device)
    w = torch.ones((len(k_in), *camera), dtype=torch.complex64, device=device)
    record(scattered, w, centre_um)
    return w


# --- the object's box ------------------------------------------------------------------------------


def scatter(
    ri: NDArray[np.float32],
    voxel_um: Triple,
    optics: Optics,
    k_in: NDArray[np.float64],
    *,
    slice_um: float = SLICE_UM,
    pitch_um: float = PITCH_UM,
    device: str = "cpu",
) -> Scattered:
    """Scatter plane waves ``k_in`` [angle, 2] (rad/um) by an RI volume [z, y, x] in the medium of ``optics``.

    The box is grown beyond the volume so that an object's shadow does not meet its periodic image. Raises BadValue when the
    pitch cannot carry the propagating waves.
    """
    coarsest = optics.wavelength_um / (2 * optics.medium_ri)
    if not 0 < pitch_um < coarsest:
        raise BadValue(f"pitch_um is {pitch_um:g}; propagating waves need less than {coarsest:.3f} um.")
    patch = quick_size(math.ceil(_reach(ri, voxel_um, optics.medium_ri) / optics.pixel_size_um), 8)
    box_um = patch * optics.pixel_size_um
    size = quick_size(math.ceil(box_um / pitch_um), 2)
    layers, step, centre = _slices(ri, voxel_um, optics, (size, box_um), slice_um, device)
    spectrum = torch.empty((len(k_in), size, size), dtype=torch.complex64, device=device)
    for start in range(0, len(k_in), ANGLES_AT_ONCE):
        block = slice(start, start + ANGLES_AT_ONCE)
        spectrum[block] = _march(layers, step, centre, box_um / size, optics, k_in[block])
    return Scattered(spectrum, box_um, patch, k_in, optics)


def _reach(ri: NDArray[np.float32], voxel_um: Triple, medium_ri: float) -> float:
    """Side of the box, um: the object's width about the middle voxel and ``REACH`` of its depth."""
    excess = np.abs(ri - np.float32(medium_ri))
    marked = excess > 1e-3 * float(excess.max())
    extent = []
    for axis, pitch in enumerate(voxel_um):
        found = np.flatnonzero(marked.any(tuple(a for a in range(3) if a != axis)))
        middle = ri.shape[axis] // 2
        extent.append(2 * pitch * max(abs(int(found[0]) - middle), abs(int(found[-1]) - middle) + 1) if len(found) else 1.0)
    return max(extent[1:]) + max(REACH * extent[0], LEAST_REACH_UM) + TAPER_UM


def quick_size(n: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` >= n with no prime factor above 5: FFTs of such lengths are quick."""
    n = -(-n // multiple) * multiple
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += multiple


def _slices(
    ri: NDArray[np.float32], voxel_um: Triple, optics: Optics, grid: tuple[int, float], slice_um: float, device: str
) -> tuple[Tensor, float, float]:
    """Potential [slice, size, size] on the solver's grid (size, box_um), slice thickness, (fractional) index of the middle."""
    k0 = 2 * math.pi / optics.wavelength_um
    volume = torch.from_numpy(np.ascontiguousarray(ri, np.float32)).to(device)
    potential = k0**2 * (volume.square() - optics.medium_ri**2)
    factor = max(1, round(slice_um / voxel_um[0]))
    potential, centre = _thicken(potential, factor)
    strength = potential.abs().amax((1, 2))
    used = torch.nonzero(strength > 1e-3 * strength.max().clamp_min(1e-12))[:, 0]
    if not len(used):
        return potential.new_zeros((0, grid[0], grid[0])), factor * voxel_um[0], 0.0
    first, last = int(used[0]), int(used[-1]) + 1
    return _relay(potential[first:last], voxel_um, grid), factor * voxel_um[0], centre - first


def _thicken(potential: Tensor, factor: int) -> tuple[Tensor, float]:
    """Every ``factor``-th sample of the axially band-limited potential, and the index of the middle plane among them.

    Cosine roll-off over the last tenth below the new Nyquist frequency: slices of 0.3 um hold the caps up to NA 1.2 whole.
    """
    nz = potential.shape[0]
    if factor == 1:
        return potential, float(nz // 2)
    margin = 2 * factor
    keep = quick_size(math.ceil((nz + 2 * margin) / factor), 2)
    total = keep * factor
    spectrum = torch.fft.rfft(potential, n=total, dim=0)[: keep // 2 + 1]
    bins = torch.arange(keep // 2 + 1, device=potential.device)
    roll = 0.5 + 0.5 * torch.cos(math.pi * ((bins / (keep / 2) - 0.9) / 0.1).clamp(0, 1))
    phase = bins * (-2 * math.pi * margin / total)
    thick = torch.fft.irfft(spectrum * torch.polar(roll, phase)[:, None, None], n=keep, dim=0) / factor
    return thick, (nz // 2 + margin) / factor


def _relay(potential: Tensor, voxel_um: Triple, grid: tuple[int, float]) -> Tensor:
    """The potential's Fourier series on the box, cut at the grid's Nyquist frequency: [slice, y, x] -> [slice, size, size].

    A sum over the volume's own samples at the box's frequencies, so that the two pitches need no common measure. The middle
    voxel goes to index size // 2.
    """
    size, box_um = grid
    frequency = 2 * math.pi * torch.fft.fftfreq(size, box_um / size, dtype=torch.float64)

    def series(n: int, pitch: float) -> Tensor:
        place = (torch.arange(n, dtype=torch.float64) - n // 2) * pitch + (size // 2) * box_um / size
        waves = torch.polar(torch.full((size, n), pitch * size / box_um, dtype=torch.float64), -frequency[:, None] * place)
        waves[size // 2] = 0
        return waves.to(device=potential.device, dtype=torch.complex64)

    rows, columns = series(potential.shape[1], voxel_um[1]), series(potential.shape[2], voxel_um[2])
    spectrum = rows @ (potential.to(torch.complex64) @ columns.T)
    relaid: Tensor = torch.fft.ifft2(spectrum).real.contiguous()
    return relaid


# --- the march -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Waves:
    """One batch of angles on one box: the carried wave, K_z, which waves propagate [angle, y, x]; k_z0 [angle, 1, 1]."""

    carried: Tensor
    k_z: Tensor
    k_z0: Tensor
    propagating: Tensor


def _waves(size: int, pitch: float, optics: Optics, k_in: NDArray[np.float64], device: torch.device) -> _Waves:
    k = 2 * math.pi * optics.medium_ri / optics.wavelength_um
    dk = 2 * math.pi / (size * pitch)
    bins = np.round(k_in / dk)
    rest = torch.from_numpy(k_in - bins * dk).to(device=device, dtype=torch.float32)[:, :, None, None]
    axis = (2 * math.pi * torch.fft.fftfreq(size, pitch)).to(device)
    kt2 = (axis[None, :, None] + rest[:, 1]) ** 2 + (axis[None, None, :] + rest[:, 0]) ** 2
    turn = torch.from_numpy(bins * 2 * np.pi / size).to(device=device, dtype=torch.float32)[:, :, None, None]
    index = torch.arange(size, device=device)
    phase = index[None, :, None] * turn[:, 1] + index[None, None, :] * turn[:, 0]
    k_z0 = torch.from_numpy(np.sqrt(k**2 - (k_in**2).sum(1))).to(device=device, dtype=torch.float32)[:, None, None]
    return _Waves(
        carried=torch.polar(torch.ones_like(phase), phase),
        k_z=(k**2 - kt2).clamp_min((0.05 * k) ** 2).sqrt(),
        k_z0=k_z0,
        propagating=(kt2 < (GRAZING * k) ** 2).float(),
    )


def _march(layers: Tensor, step: float, centre: float, pitch: float, optics: Optics, k_in: NDArray[np.float64]) -> Tensor:
    """Spectrum of the scattered field over the illumination in the plane of slice index ``centre``, [angle, y, x].

    The illumination's own advance is divided out, so ``scattered`` holds u - u_in and the incident part never changes.
    """
    waves = _waves(layers.shape[-1], pitch, optics, k_in, layers.device)
    relative = (waves.k_z - waves.k_z0) * waves.propagating
    advance = torch.polar(waves.propagating, relative * step)
    kick = advance * (waves.k_z0 / waves.k_z)
    rows, columns = _support(layers)
    carried = waves.carried[:, rows, columns].contiguous()
    slopes, which = torch.unique(waves.k_z0.flatten().round(decimals=5), return_inverse=True)
    scattered = torch.zeros_like(waves.carried)
    kicked = torch.zeros_like(waves.carried)
    for layer in layers[:, rows, columns]:
        field = torch.fft.ifft2(scattered)[:, rows, columns] + carried
        kicked[:, rows, columns] = field.mul_(_screen(layer, slopes, step)[which])
        scattered.mul_(advance).addcmul_(torch.fft.fft2(kicked), kick)
    # Each slice ends one step behind itself: we stand at index n. Go to `centre`, and over the illumination.
    back = torch.polar(waves.propagating, relative * (step * (centre - len(layers))))
    field = torch.fft.ifft2(scattered.mul_(back)).mul_(waves.carried.conj())
    spectrum: Tensor = torch.fft.fft2(field)
    return spectrum


def _support(layers: Tensor) -> tuple[slice, slice]:
    """Rows and columns outside which no slice departs from the medium: the screens are 1 there."""
    strength = layers.abs().amax(0) if len(layers) else layers.new_zeros(layers.shape[1:])
    marked = strength > 1e-3 * strength.max().clamp_min(1e-12)
    found = [torch.nonzero(marked.any(axis))[:, 0] for axis in (1, 0)]
    rows, columns = (slice(int(f[0]), int(f[-1]) + 1) if len(f) else slice(0, 0) for f in found)
    return rows, columns


def _screen(layer: Tensor, slopes: Tensor, step: float) -> Tensor:
    """exp(i D) - 1 [slope, y, x]: D = (sqrt(k_z0^2 + V) - k_z0) dz, once for all waves of one inclination."""
    k_z0 = slopes[:, None, None]
    delay = ((k_z0.square() + layer).clamp_min(0).sqrt() - k_z0) * step
    screen = torch.polar(torch.ones_like(delay), delay)
    screen.real.sub_(1)
    return screen


# --- onto the camera -------------------------------------------------------------------------------


def record(scattered: Scattered, w: Tensor, centre_um: NDArray[np.float64] | Triple = (0.0, 0.0, 0.0)) -> None:
    """Add an object's scattered field to ``w`` [angle, y, x], in place: cut by the pupil, at its place and height.

    ``centre_um``: (z, y, x) from the middle of the camera's focal plane; z > 0 lies further along the light. An object out of
    focus throws its shadow aside: each angle's patch follows the ray, and what lies beyond the camera is lost, not wrapped.
    """
    optics, k_in = scattered.optics, scattered.k_in_rad_um
    centres = np.broadcast_to(np.asarray(centre_um, np.float64), (len(k_in), 3))
    k = 2 * math.pi * optics.medium_ri / optics.wavelength_um
    k_z0 = np.sqrt(k**2 - (k_in**2).sum(1))
    # Seen in the focal plane, an object at z > 0 (behind it) shifts against the illumination.
    rays = centres[:, 1:] - (centres[:, :1] * k_in / k_z0[:, None])[:, ::-1]
    pixels = np.round(rays / optics.pixel_size_um).astype(np.int64)
    rest = centres.copy()
    rest[:, 1:] -= pixels * optics.pixel_size_um
    for start in range(0, len(k_in), ANGLES_AT_ONCE):
        block = slice(start, start + ANGLES_AT_ONCE)
        patches = _patches(scattered, block, rest[block])
        for angle, patch in enumerate(patches, start=start):
            _lay(patch, w[angle], (int(pixels[angle, 0]), int(pixels[angle, 1])))


def _patches(scattered: Scattered, block: slice, place_um: NDArray[np.float64]) -> Tensor:
    """Scattered field [angle, patch, patch] at the camera's pitch for some angles, tapered to nothing at the patch's edge."""
    optics, n = scattered.optics, scattered.patch
    spectrum = scattered.spectrum[block]
    device = spectrum.device
    k0 = 2 * math.pi / optics.wavelength_um
    size = spectrum.shape[-1]
    axis = (2 * math.pi * torch.fft.fftfreq(size, scattered.box_um / size)).to(device)
    k_in = torch.from_numpy(scattered.k_in_rad_um[block]).to(device, torch.float32)[:, :, None, None]
    z, y, x = (torch.from_numpy(c).to(device, torch.float32)[:, None, None] for c in place_um.T.copy())
    # Of the aliases of each bin, the one that the pupil can see: |K + k_in| small.
    span = 2 * math.pi * size / scattered.box_um
    ky = torch.remainder(axis[None, :, None] + k_in[:, 1] + span / 2, span) - span / 2
    kx = torch.remainder(axis[None, None, :] + k_in[:, 0] + span / 2, span) - span / 2
    kt2 = ky.square() + kx.square()
    pupil = (kt2 <= (optics.objective_na * k0) ** 2).float()
    k2 = (k0 * optics.medium_ri) ** 2
    k_z = (k2 - kt2).clamp_min(1e-3).sqrt()
    k_z0 = (k2 - k_in.square().sum(1)).sqrt()
    phase = -((ky - k_in[:, 1]) * y + (kx - k_in[:, 0]) * x + (k_z - k_z0) * z)
    wide = torch.zeros((len(spectrum), n, n), dtype=torch.complex64, device=device)
    rows = _bins(ky - k_in[:, 1], scattered.box_um, n)
    columns = _bins(kx - k_in[:, 0], scattered.box_um, n)
    value = spectrum * torch.polar(pupil * (n / size) ** 2, phase)
    angle = torch.arange(len(spectrum), device=device)[:, None, None]
    wide.index_put_((angle, rows, columns), value, accumulate=True)
    patches: Tensor = torch.fft.ifft2(wide) * _taper(n, optics.pixel_size_um, device)
    return patches


def _bins(frequency: Tensor, box_um: float, n: int) -> Tensor:
    return torch.round(frequency * (box_um / (2 * math.pi))).long() % n


def _taper(n: int, pixel_um: float, device: torch.device) -> Tensor:
    edge = torch.arange(n, device=device).float()
    depth = (torch.minimum(edge, n - 1 - edge) * pixel_um / TAPER_UM).clamp(0, 1)
    line = 0.5 - 0.5 * torch.cos(math.pi * depth)
    return line[:, None] * line[None, :]


def _lay(patch: Tensor, frame: Tensor, shift: tuple[int, int]) -> None:
    """Add ``patch`` to ``frame``, its middle ``shift`` pixels off the frame's middle; what sticks out is cut."""
    source, target = [], []
    for n, size, offset in zip(patch.shape, frame.shape, shift, strict=True):
        low = size // 2 - n // 2 + offset
        source.append(slice(max(0, -low), max(0, min(n, size - low))))
        target.append(slice(max(0, low), max(0, min(size, low + n))))
    if all(s.stop > s.start for s in source):
        frame[target[0], target[1]] += patch[source[0], source[1]]
