"""Rytov spectra on Ewald caps -> refractive index, by constrained inversion.

The forward model is exact on the grid: a plane-wave projection samples the volume's spectrum at continuous K_z on each column
of the lateral FFT grid (the folded field makes K_x, K_y fall on it), so nothing is gridded. The normal operator A^H W A is a
convolution along z, applied through a 2x zero-padded FFT as one real multiplier (a Toeplitz embedding). Each FISTA step with
non-negativity therefore costs one padded transform pair and solves the weighted least-squares problem itself; Gerchberg-
Papoulis is the same iteration without the momentum and with the spectrum rounded to grid points.

Equations: Wolf 1969, Devaney 1981 (Rytov); Beck & Teboulle 2009 (FISTA); V = k0^2 (n^2 - n_m^2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.recipe import Recipe
from wbcd.reconstruction.spectrum import Window, locate, rytov, wave_numbers
from wbcd.records import FieldStack, InversionReport, Optics, Shape3, Tomogram, Triple

# 8,192 samples of 100 heights are 6.5 MB: a table that stays near the cores' caches.
SAMPLES_AT_ONCE = 8192


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


class EwaldOperator:
    """The sampling of one geometry: right-hand side, normal operator and predicted spectra.

    ``shape`` (z, y, x), ``voxel_um`` (z, y, x). Holds one real multiplier of [2 nz, ny, nx/2 + 1] floats.
    """

    def __init__(
        self, k_in_rad_um: NDArray[np.float64], optics: Optics, shape: Shape3, voxel_um: Triple, device: str = "cpu"
    ) -> None:
        self.shape = shape
        self.voxel_um = voxel_um
        self.optics = optics
        self.device = device
        self.frames = len(k_in_rad_um)
        caps = _caps(k_in_rad_um, optics, shape, voxel_um, device)
        self.caps = caps._replace(weight=_density_weight(caps, shape))
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
        columns = torch.zeros((ny * nx, nz), dtype=torch.complex64, device=self.device)
        values = samples * (self.caps.weight / (2 * nz))
        for part in self._chunks():
            columns.index_add_(0, self.caps.column[part], values[part, None] * self._waves(part, self._lowest))
        volume: Tensor = torch.fft.ifft2(columns.T.reshape(nz, ny, nx))
        return volume.real.roll((ny // 2, nx // 2), (-2, -1))

    def predict(self, volume: Tensor, chosen: Tensor) -> Tensor:
        """A x at the ``chosen`` samples (indices): what a volume [z, y, x] would give there."""
        nz, ny, nx = self.shape
        columns = torch.fft.fft2(torch.fft.ifftshift(volume, dim=(-2, -1))).reshape(nz, ny * nx).T.contiguous()
        parts = [
            torch.linalg.vecdot(self._waves(part, self._lowest), columns[self.caps.column[part]])
            for part in torch.split(chosen, SAMPLES_AT_ONCE)
        ]
        return torch.cat(parts)

    def normal(self, volume: Tensor) -> Tensor:
        """A^H W A x by the Toeplitz embedding: real [z, y, x]."""
        nz = self.shape[0]
        lateral = torch.fft.rfft2(volume)
        axial = torch.fft.fft(lateral, n=2 * nz, dim=0).mul_(self.multiplier)
        back = torch.fft.ifft(axial, dim=0)[:nz]
        out: Tensor = torch.fft.irfft2(back, s=self.shape[1:])
        return out

    def _chunks(self) -> list[slice]:
        return [slice(i, i + SAMPLES_AT_ONCE) for i in range(0, len(self.caps.column), SAMPLES_AT_ONCE)]

    @property
    def _lowest(self) -> int:
        """Height of slice 0: the middle slice lies in the plane of the fields."""
        return -(self.shape[0] // 2)

    def _waves(self, part: slice | Tensor, first: int) -> Tensor:
        """exp(i K_z z) [sample, nz] at the heights first, first + 1, ... slices.

        As products of two short tables: a complex product costs a quarter of a sine and cosine.
        """
        nz = self.shape[0]
        short = math.isqrt(nz - 1) + 1
        step = self.caps.kz_step[part]
        fine = step[:, None] * torch.arange(short, device=self.device)
        coarse = step[:, None] * (first + short * torch.arange(-(-nz // short), device=self.device))
        table = torch.polar(torch.ones_like(coarse), coarse)[:, :, None] * torch.polar(torch.ones_like(fine), fine)[:, None, :]
        return table.flatten(1)[:, :nz]

    def _transfer(self) -> tuple[Tensor, float]:
        """Real multiplier [2 nz, ny, nx/2+1] of the normal operator and its largest value.

        The kernel along z, t(d) = sum w exp(i K_z d dz)/(2 nz), is made Hermitian over (K, -K): the volume is real.
        """
        nz, ny, nx = self.shape
        kernel = torch.zeros((ny * nx, nz), dtype=torch.complex64, device=self.device)
        weight = self.caps.weight / (2 * nz)
        for part in self._chunks():
            kernel.index_add_(0, self.caps.column[part], weight[part, None] * self._waves(part, 0))
        plane = kernel.reshape(ny, nx, nz)
        mirrored = torch.roll(plane.flip((0, 1)), (1, 1), (0, 1)).conj()
        plane = 0.5 * (plane + mirrored)[:, : nx // 2 + 1]
        full = torch.zeros((2 * nz, ny, nx // 2 + 1), dtype=torch.complex64, device=self.device)
        full[:nz] = plane.permute(2, 0, 1)
        full[nz + 1 :] = plane[:, :, 1:].flip(2).conj().permute(2, 0, 1)
        multiplier = torch.fft.fft(full, dim=0).real.contiguous()
        return multiplier, float(multiplier.max())


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


def _density_weight(caps: Caps, shape: Shape3) -> Tensor:
    """Averaging by hits: the inverse of the local density of samples along K_z, in units of the padded grid's spacing.

    An isolated sample gets 2 (its line is two padded bins wide), so that the multiplier stays near 1 where measured.
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
    histogram.index_add_(0, base + low, 1 - fraction)
    histogram.index_add_(0, base + high, fraction)
    grid = histogram.reshape(ny * nx, n)
    smooth = 0.5 * grid + 0.25 * (torch.roll(grid, 1, 1) + torch.roll(grid, -1, 1))
    flat = smooth.reshape(-1)
    density = flat[base + low] * (1 - fraction) + flat[base + high] * fraction
    return 1.0 / density.clamp_min(0.25)


def invert(rhs: Tensor, operator: EwaldOperator, recipe: Recipe) -> Tensor:
    """Scattering potential (in 1/um^2, real [z, y, x]) that minimises the weighted misfit, by FISTA with restart.

    Non-negativity by projection; ``tv_weight`` adds isotropic total variation by warm-started dual steps.
    """
    settings = recipe.reconstruction
    step = 1.0 / operator.lipschitz
    x = torch.zeros_like(rhs)
    momentum = x
    t = 1.0
    total_variation = _TotalVariation(operator, settings.tv_weight) if settings.tv_weight > 0 else None
    for _ in range(settings.iterations):
        candidate = momentum - step * (operator.normal(momentum) - rhs)
        if total_variation is not None:
            candidate = total_variation(candidate, step)
        if settings.non_negative:
            candidate.clamp_min_(0)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = candidate + ((t - 1) / t_next) * (candidate - x)
        x, t = candidate, t_next
    return x


class _TotalVariation:
    """Proximal step of isotropic TV (Chambolle 2004), a few dual steps warm-started from the last outer iteration."""

    STEPS = 4

    def __init__(self, operator: EwaldOperator, weight: float) -> None:
        self._weight = weight
        dz, _, dx = operator.voxel_um
        self._z_scale = dx / dz
        self._dual: Tensor | None = None

    def __call__(self, x: Tensor, step: float) -> Tensor:
        limit = self._weight * step
        dual = self._dual if self._dual is not None else x.new_zeros((3, *x.shape))
        for _ in range(self.STEPS):
            gradient = self._gradient(x + self._divergence(dual))
            dual = dual + gradient / 12
            dual = dual / (dual.norm(dim=0, keepdim=True) / limit).clamp_min(1.0)
        self._dual = dual
        return x + self._divergence(dual)

    def _gradient(self, x: Tensor) -> Tensor:
        out = x.new_zeros((3, *x.shape))
        out[0, :-1] = self._z_scale * torch.diff(x, dim=0)
        out[1, :, :-1] = torch.diff(x, dim=1)
        out[2, :, :, :-1] = torch.diff(x, dim=2)
        return out

    def _divergence(self, p: Tensor) -> Tensor:
        out = torch.zeros_like(p[0])
        out[:-1] += self._z_scale * p[0, :-1]
        out[1:] -= self._z_scale * p[0, :-1]
        out[:, :-1] += p[1, :, :-1]
        out[:, 1:] -= p[1, :, :-1]
        out[:, :, :-1] += p[2, :, :, :-1]
        out[:, :, 1:] -= p[2, :, :, :-1]
        return out


def potential_to_ri(potential: Tensor, optics: Optics) -> Tensor:
    """n = sqrt(n_m^2 + V/k0^2)."""
    k0, _ = wave_numbers(optics)
    return (optics.medium_ri**2 + potential / k0**2).clamp_min(0).sqrt()


def ri_to_potential(ri: Tensor, optics: Optics) -> Tensor:
    """V = k0^2 (n^2 - n_m^2)."""
    k0, _ = wave_numbers(optics)
    return k0**2 * (ri.square() - optics.medium_ri**2)


def reconstruct(fields: FieldStack, recipe: Recipe, *, device: str = "cpu") -> list[Tomogram]:
    """RI tomograms of a field of view, one for each window that holds objects; [] when there is none."""
    return [_reconstruct_window(window, fields, recipe, device) for window in locate(fields, recipe)]


def _reconstruct_window(window: Window, fields: FieldStack, recipe: Recipe, device: str) -> Tomogram:
    started = time.perf_counter()
    stack = rytov(fields, window, recipe, device=device)
    nz = recipe.reconstruction.shape[0]
    dz = recipe.reconstruction.voxel_um[0]
    shape = (nz, stack.psi.shape[-2], stack.psi.shape[-1])
    voxel = (dz, stack.pixel_um, stack.pixel_um)
    operator = _operator(np.ascontiguousarray(stack.k_in_rad_um, np.float64).tobytes(), stack.optics, shape, voxel, device)
    samples = operator.samples(stack.psi)
    potential = invert(operator.right_hand_side(samples), operator, recipe)
    misfit, overall = _misfit(operator, samples, potential)
    report = InversionReport(
        focus_um=stack.focus_um,
        residue_count=stack.residue_count,
        frame_residual=misfit,
        residual=overall,
        frame_shift_um=stack.frame_shift_um,
        iterations=recipe.reconstruction.iterations,
        seconds=time.perf_counter() - started,
        cut_by_field=window.cut,
    )
    cy, cx = stack.centre_px
    pixel = stack.pixel_um
    ny, nx = fields.w.shape[-2:]
    return Tomogram(
        ri=potential_to_ri(potential, stack.optics).float().cpu().numpy(),
        voxel_um=voxel,
        medium_ri=stack.optics.medium_ri,
        origin_um=(stack.focus_um - nz // 2 * dz, (cy - shape[1] // 2) * pixel, (cx - shape[2] // 2) * pixel),
        wavelength_um=stack.optics.wavelength_um,
        objective_na=stack.optics.objective_na,
        report=report,
        field_of_view_um=(0.0, ny * pixel, 0.0, nx * pixel),
    )


def _misfit(operator: EwaldOperator, samples: Tensor, potential: Tensor) -> tuple[NDArray[np.float64], float]:
    """Relative misfit |A x - y|/|y| of each frame [frame] and of all together, from every fourth sample (900 a frame)."""
    chosen = torch.arange(0, len(samples), 4, device=samples.device)
    measured = samples[chosen]
    difference = (operator.predict(potential, chosen) - measured).abs().square()
    power = measured.abs().square()
    frame = operator.caps.frame[chosen]
    zero = torch.zeros(operator.frames, device=samples.device)
    wrong = zero.index_add(0, frame, difference)
    norm = zero.index_add(0, frame, power).clamp_min(1e-20)
    each: NDArray[np.float64] = (wrong / norm).sqrt().double().cpu().numpy()
    return each, float((wrong.sum() / norm.sum()).sqrt())


@lru_cache(maxsize=2)
def _operator(k_in: bytes, optics: Optics, shape: Shape3, voxel_um: Triple, device: str) -> EwaldOperator:
    """The operator of a session's geometry: its illumination comes from the shared reference, so it recurs exactly."""
    return EwaldOperator(np.frombuffer(k_in, np.float64).reshape(-1, 2), optics, shape, voxel_um, device)
