"""Sampling of a volume's spectrum on the Ewald caps of one illumination set: exact on the grid.

A plane-wave projection samples the volume's spectrum at continuous K_z on each column of the lateral FFT grid (the folded
field makes K_x, K_y fall on it), so nothing is rounded to a grid. The normal operator A^H W A is a convolution along z,
applied through a 2x zero-padded FFT as one real multiplier (a Toeplitz embedding). To and from the samples themselves goes a
non-uniform FFT along z (Kaiser-Bessel window, six taps, 2x oversampled: 1e-5 of the exact sum), on the half plane K_x >= 0
that a real volume needs.

Equations: Wolf 1969, Devaney 1981 (Rytov); V = k0^2 (n^2 - n_m^2); Beatty 2005 (the window and its shape parameter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.reconstruction.spectrum import wave_numbers
from wbcd.records import Optics, Shape3, Triple

# 8,192 samples of 100 heights are 6.5 MB: a table that stays near the cores' caches.
SAMPLES_AT_ONCE = 8192
TAPS = 6
_BETA = math.pi * math.sqrt((TAPS / 2) ** 2 * 1.5**2 - 0.8)


class Caps(NamedTuple):
    """Where one illumination set samples the spectrum: flat arrays over all samples.

    ``column``: index into the flattened lateral FFT grid; ``kz_step``: K_z dz, rad a slice; ``frame``; ``k_z``: axial wave
    number of the scattered wave, rad/um; ``weight``: density compensation.
    """

    column: Tensor
    kz_step: Tensor
    frame: Tensor
    k_z: Tensor
    weight: Tensor


class _Fan(NamedTuple):
    """Each sample's taps on the oversampled axial grid of its column, K_x >= 0.

    ``places`` [sample, tap] into the flattened [column, 2 nz] grid; ``weight`` [sample, tap]; ``mirrored`` [sample]: it stands
    for its conjugate at -K; ``share`` [sample]: 1 on the columns that are their own mirror images in x, else 1/2;
    ``roll_off`` [nz]: the window's transform at each height.
    """

    places: Tensor
    weight: Tensor
    mirrored: Tensor
    share: Tensor
    roll_off: Tensor


class EwaldOperator:
    """The sampling of one geometry: right-hand side, normal operator and predicted spectra.

    ``shape`` (z, y, x), ``voxel_um`` (z, y, x). Samples of the frames ``held_out`` have no weight: they judge the inversion.
    ``columns``: the places of the half plane [ny, nx/2 + 1] that are measured at all, ascending. Holds one real multiplier of
    [2 nz, columns, 2] floats and six taps a sample.
    """

    def __init__(
        self,
        k_in_rad_um: NDArray[np.float64],
        optics: Optics,
        shape: Shape3,
        voxel_um: Triple,
        device: str = "cpu",
        held_out: Sequence[int] = (),
    ) -> None:
        self.shape = shape
        self.voxel_um = voxel_um
        self.optics = optics
        self.device = device
        self.frames = len(k_in_rad_um)
        self.held_out = tuple(held_out)
        caps = _caps(k_in_rad_um, optics, shape, voxel_um, device)
        fitted = torch.ones(self.frames, device=device)
        fitted[list(self.held_out)] = 0
        self.caps = caps._replace(weight=_density_weight(caps, shape, fitted[caps.frame]))
        half, mirrored = _half_plane(caps.column, shape)
        self.columns = torch.unique(half)
        self._fan = _fan(caps.kz_step, torch.searchsorted(self.columns, half), mirrored, _share(half, shape), shape[0])
        self.multiplier, self.lipschitz = self._transfer()

    def samples(self, psi: Tensor) -> Tensor:
        """Scattering-potential samples y = V^/(dx^2 dz) from folded Rytov phases [frame, y, x] centred in the window.

        V^(K_xy, k_z - k_z0) = -2 i k_z psi^(K_xy).
        """
        spectrum = torch.fft.fft2(torch.fft.ifftshift(psi, dim=(-2, -1))).flatten(1)
        picked = spectrum[self.caps.frame, self.caps.column]
        return torch.complex(picked.imag, -picked.real) * (2 * self.caps.k_z / self.voxel_um[0])

    def right_hand_side(self, samples: Tensor) -> Tensor:
        """A^H W y: real [z, y, x], the image of the weighted samples."""
        nz, ny, nx = self.shape
        values = samples * (self.caps.weight * self._fan.share / (2 * nz))
        values = torch.where(self._fan.mirrored, values.conj(), values)
        index = self._fan.places.flatten()
        real, imaginary = (
            torch.zeros(len(self.columns) * 2 * nz, device=self.device).scatter_add_(0, index, spread.flatten())
            for spread in (values.real[:, None] * self._fan.weight, values.imag[:, None] * self._fan.weight)
        )
        axial = torch.fft.ifft(torch.complex(real, imaginary).reshape(-1, 2 * nz), norm="forward")
        columns = torch.cat((axial[:, self._lowest :], axial[:, : nz + self._lowest]), 1) / self._fan.roll_off
        volume: Tensor = torch.fft.irfft2(self._spread(columns.T), s=(ny, nx))
        return volume.roll((ny // 2, nx // 2), (-2, -1))

    def predict(self, volume: Tensor, chosen: Tensor | None = None) -> Tensor:
        """A x at the ``chosen`` samples (indices; all of them by default): what a volume [z, y, x] would give there."""
        nz = self.shape[0]
        lateral = torch.fft.rfft2(torch.fft.ifftshift(volume, dim=(-2, -1))).flatten(1)
        columns = lateral.index_select(1, self.columns).T / self._fan.roll_off
        padded = torch.zeros((len(columns), 2 * nz), dtype=torch.complex64, device=self.device)
        padded[:, self._lowest :], padded[:, : nz + self._lowest] = columns[:, : -self._lowest], columns[:, -self._lowest :]
        axial = torch.fft.fft(padded).flatten()
        index, weight, mirrored = self._fan.places, self._fan.weight, self._fan.mirrored
        if chosen is not None:
            index, weight, mirrored = index[chosen], weight[chosen], mirrored[chosen]
        values = (axial.index_select(0, index.flatten()).reshape(index.shape) * weight).sum(1)
        return torch.where(mirrored, values.conj(), values)

    def normal(self, volume: Tensor) -> Tensor:
        """A^H W A x by the Toeplitz embedding: real [z, y, x]."""
        nz = self.shape[0]
        padded = torch.empty((2 * nz, len(self.columns)), dtype=torch.complex64, device=self.device)
        padded[nz:] = 0
        torch.index_select(torch.fft.rfft2(volume).flatten(1), 1, self.columns, out=padded[:nz])
        axial = torch.fft.fft(padded, dim=0)
        torch.view_as_real(axial).mul_(self.multiplier)
        back = self._spread(torch.fft.ifft(axial, dim=0)[:nz])
        out: Tensor = torch.fft.irfft2(back, s=self.shape[1:])
        return out

    def _spread(self, columns: Tensor) -> Tensor:
        """Columns [nz, column] in their places of the half plane, zero elsewhere: [nz, ny, nx/2 + 1]."""
        nz, ny, nx = self.shape
        plane = torch.zeros((nz, ny * (nx // 2 + 1)), dtype=torch.complex64, device=self.device)
        plane.index_copy_(1, self.columns, columns)
        return plane.reshape(nz, ny, nx // 2 + 1)

    def _chunks(self) -> list[slice]:
        return [slice(i, i + SAMPLES_AT_ONCE) for i in range(0, len(self.caps.column), SAMPLES_AT_ONCE)]

    @property
    def _lowest(self) -> int:
        """Height of slice 0: the middle slice lies in the plane of the fields."""
        return -(self.shape[0] // 2)

    def _waves(self, part: slice) -> Tensor:
        """exp(i K_z z) [sample, nz] at the heights 0, 1, ... slices.

        As products of two short tables: a complex product costs a quarter of a sine and cosine.
        """
        nz = self.shape[0]
        short = math.isqrt(nz - 1) + 1
        step = self.caps.kz_step[part]
        fine = step[:, None] * torch.arange(short, device=self.device)
        coarse = step[:, None] * (short * torch.arange(-(-nz // short), device=self.device))
        table = torch.polar(torch.ones_like(coarse), coarse)[:, :, None] * torch.polar(torch.ones_like(fine), fine)[:, None, :]
        return table.flatten(1)[:, :nz]

    def _transfer(self) -> tuple[Tensor, float]:
        """Real multiplier [2 nz, columns, 2] of the normal operator and its largest value.

        The kernel along z, t(d) = sum w exp(i K_z d dz)/(2 nz), is made Hermitian over (K, -K): the volume is real.
        """
        nz, ny, nx = self.shape
        kernel = torch.zeros((ny * nx, nz), dtype=torch.complex64, device=self.device)
        weight = self.caps.weight / (2 * nz)
        for part in self._chunks():
            kernel.index_add_(0, self.caps.column[part], weight[part, None] * self._waves(part))
        plane = kernel.reshape(ny, nx, nz)
        mirrored = torch.roll(plane.flip((0, 1)), (1, 1), (0, 1)).conj()
        half = 0.5 * (plane + mirrored)[:, : nx // 2 + 1].flatten(0, 1)[self.columns].T
        full = torch.zeros((2 * nz, len(self.columns)), dtype=torch.complex64, device=self.device)
        full[:nz] = half
        full[nz + 1 :] = half[1:].flip(0).conj()
        multiplier = torch.fft.fft(full, dim=0).real
        # Twice, for the real and the imaginary part: a product of floats with floats needs no conversion.
        return torch.stack((multiplier, multiplier), -1), float(multiplier.max())


def _caps(k_in: NDArray[np.float64], optics: Optics, shape: Shape3, voxel_um: Triple, device: str) -> Caps:
    k0, k = wave_numbers(optics)
    _, ny, nx = shape
    ky = 2 * np.pi * np.fft.fftfreq(ny, voxel_um[1])[:, None]
    kx = 2 * np.pi * np.fft.fftfreq(nx, voxel_um[2])[None, :]
    pupil = (optics.objective_na * k0) ** 2
    # At NA near n_m the rim of the pupil is evanescent-steep and carries noise only.
    steep = (0.995 * k) ** 2
    columns, steps, frames, axial = [], [], [], []
    for i, (px, py) in enumerate(k_in):
        kt2 = (kx + px) ** 2 + (ky + py) ** 2
        inside = np.flatnonzero(kt2 <= min(pupil, steep))
        kz = np.sqrt(k**2 - kt2.ravel()[inside])
        columns.append(inside)
        axial.append(kz)
        steps.append((kz - math.sqrt(max(k**2 - px**2 - py**2, 0.0))) * voxel_um[0])
        frames.append(np.full(len(inside), i))

    def tensor(parts: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=dtype)

    kz_step = tensor(steps, torch.float32)
    return Caps(
        column=tensor(columns, torch.int64),
        kz_step=kz_step,
        frame=tensor(frames, torch.int64),
        k_z=tensor(axial, torch.float32),
        weight=torch.ones_like(kz_step),
    )


def _half_plane(column: Tensor, shape: Shape3) -> tuple[Tensor, Tensor]:
    """Where each column of the full plane, or its mirror image, lies in [ny, nx/2 + 1]; True where it is the image."""
    _, ny, nx = shape
    y, x = column // nx, column % nx
    mirrored = x > nx // 2
    y, x = torch.where(mirrored, (ny - y) % ny, y), torch.where(mirrored, nx - x, x)
    return y * (nx // 2 + 1) + x, mirrored


def _share(half: Tensor, shape: Shape3) -> Tensor:
    nx = shape[2]
    x = half % (nx // 2 + 1)
    return torch.where((x == 0) | (2 * x == nx), 1.0, 0.5)


def _fan(kz_step: Tensor, place: Tensor, mirrored: Tensor, share: Tensor, nz: int) -> _Fan:
    """Taps of a Kaiser-Bessel window; ``place``: number of each sample's column."""
    n = 2 * nz
    position = torch.where(mirrored, -kz_step, kz_step).double() * (n / (2 * math.pi))
    first = torch.ceil(position - TAPS / 2)
    taps = first[:, None] + torch.arange(TAPS, device=kz_step.device)
    inside = (1 - (2 * (taps - position[:, None]) / TAPS).square()).clamp_min(0)
    index = place[:, None] * n + torch.remainder(taps, n).long()
    heights = torch.arange(-(nz // 2), nz - nz // 2, device=kz_step.device, dtype=torch.float64) / n
    root = (_BETA**2 - (math.pi * TAPS * heights).square()).sqrt()
    return _Fan(
        places=index,
        weight=torch.special.i0(_BETA * inside.sqrt()).float(),
        mirrored=mirrored,
        share=share,
        roll_off=(TAPS * torch.sinh(root) / root).float(),
    )


def _density_weight(caps: Caps, shape: Shape3, share: Tensor) -> Tensor:
    """Averaging by hits: the inverse of the local density of samples along K_z, in units of the padded grid's spacing.

    ``share``: 1 for samples that take part, 0 for those held out. An isolated sample gets 2 (its line is two padded bins
    wide), so that the multiplier stays near 1 where measured.
    """
    nz, ny, nx = shape
    n = 2 * nz
    position = torch.remainder(caps.kz_step * (n / (2 * math.pi)), n)
    low = position.floor()
    fraction = position - low
    low = low.long() % n
    high = (low + 1) % n
    histogram = torch.zeros(ny * nx * n, device=caps.column.device)
    base = caps.column * n
    histogram.index_add_(0, base + low, share * (1 - fraction))
    histogram.index_add_(0, base + high, share * fraction)
    grid = histogram.reshape(ny * nx, n)
    smooth = 0.5 * grid + 0.25 * (torch.roll(grid, 1, 1) + torch.roll(grid, -1, 1))
    flat = smooth.reshape(-1)
    density = flat[base + low] * (1 - fraction) + flat[base + high] * fraction
    return share / density.clamp_min(0.25)
