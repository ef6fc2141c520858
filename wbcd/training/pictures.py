"""What a two-dimensional microscope would see of a cell: phase and amplitude at normal incidence, and the maximum projection.

A picture comes from the normally lit frame where there is one; of a cell of which only the tomogram was kept it is the
tomogram's own projection, by the Fourier diffraction theorem in the Rytov approximation (Devaney 1981):

    psi^(K) = i/(2 k_z) sum_z V^(K; z) exp(-i (k_z - k) z) dz,   V = k0^2 (n^2 - n_m^2),   |K| <= NA k0

phase = Im psi, amplitude = exp(Re psi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import InputSpec
from wbcd.classification.preparation import fit_centre, resample
from wbcd.reconstruction import ri_to_potential
from wbcd.records import Optics


@dataclass(frozen=True, slots=True)
class Pictures:
    """``phase`` (rad, unwrapped) and ``amplitude`` (1 is the medium's), float32 [y, x] at the network's lateral pitch."""

    phase: NDArray[np.float32]
    amplitude: NDArray[np.float32]


def projected(ri_delta: NDArray[np.floating], spec: InputSpec, optics: Optics) -> Pictures:
    """Pictures of a tomogram's crop, n - n_m [z, y, x] at the network's pitch; focused on the crop's middle."""
    nz, ny, nx = ri_delta.shape
    dz, dy, dx = spec.voxel_um
    ri = torch.from_numpy(ri_delta.astype(np.float32)) + optics.medium_ri
    spectrum = torch.fft.fft2(ri_to_potential(ri, optics))
    k0 = 2 * math.pi / optics.wavelength_um
    k = k0 * optics.medium_ri
    ky, kx = (2 * math.pi * torch.fft.fftfreq(n, d) for n, d in ((ny, dy), (nx, dx)))
    kt2 = ky[:, None].square() + kx.square()
    k_z = (k**2 - kt2).clamp_min(1e-3).sqrt()
    seen = (kt2 <= min(optics.objective_na * k0, k) ** 2).float()
    height = (torch.arange(nz) - nz // 2) * dz
    waves = torch.polar(torch.ones(nz, ny, nx), -height[:, None, None] * (k_z - k))
    psi = torch.fft.ifft2((spectrum * waves).sum(0) * (seen * dz / (2 * k_z)) * 1j)
    return _pictures(psi)


def of_field(
    psi: NDArray[np.complex64], pixel_um: tuple[float, float], centre_um: tuple[float, float], spec: InputSpec
) -> Pictures:
    """Pictures from the complex phase of a field [y, x] whose middle pixel (n // 2) is the origin of ``centre_um`` (y, x).

    The cell goes to the middle of the picture exactly: the field is periodic and band-limited.
    """
    turned = torch.fft.fft2(torch.from_numpy(np.ascontiguousarray(psi)))
    for axis, (size, pitch, centre) in enumerate(zip(psi.shape, pixel_um, centre_um, strict=True)):
        phase = 2 * math.pi * torch.fft.fftfreq(size, pitch) * centre
        turned = turned * torch.polar(torch.ones(size), phase).reshape((-1, 1) if axis == 0 else (1, -1))
    centred = torch.fft.ifft2(turned)
    shape = (1, *spec.shape[1:])
    source, target = (1.0, *pixel_um), (1.0, *spec.voxel_um[1:])
    parts = [fit_centre(resample(part[None], source, target), shape)[0] for part in (centred.real, centred.imag)]
    return _pictures(torch.complex(parts[0].contiguous(), parts[1].contiguous()))


def maximum(ri_delta: NDArray[np.floating]) -> NDArray[np.float32]:
    """Maximum projection along z, [..., z, y, x] -> [..., y, x]."""
    out: NDArray[np.float32] = ri_delta.max(axis=-3).astype(np.float32)
    return out


def _pictures(psi: torch.Tensor) -> Pictures:
    return Pictures(psi.imag.float().contiguous().numpy(), psi.real.float().exp().contiguous().numpy())
