"""Fast optics: an RI volume as the instrument and its inversion would show it, without holograms.

The exact Ewald-cap samples of the phantom's own spectrum (all that a weakly scattering object could give), noise of the size
that shot noise leaves in the complex phase, and the same constrained inversion as the daemon's. What Rytov does to real
fields beyond that is a widening, put in by rendering the phantom that much larger; ``test_simulation_fast.py`` holds the
result against the hologram path.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.recipe import Recipe
from wbcd.reconstruction import EwaldOperator, invert, ri_to_potential, rytov_to_ri
from wbcd.records import Optics, Shape3, Tomogram, Triple
from wbcd.simulation.cells import RI_INCREMENT_ML_G, Phantom, render
from wbcd.simulation.optics import FRAMES, ILLUMINATION_NA, INSTRUMENT, illumination

FINE_PITCH_UM = 0.15
"""Grids coarser than this are sampled from a rendering of twice their resolution."""
REFERENCE_ELECTRONS = 10_000.0
PHASE_NOISE_RAD_UM = 2.7e-3
"""Root spectral density of the complex phase's noise at 10,000 e-/pixel in sample and reference, in rad um; measured on
sample-free holograms through the whole front end."""
LEVEL_NOISE_RAD = 5e-4
"""What the background fit leaves of each frame's offset, rms."""
RYTOV_WIDENING = 0.58
"""Relative widening of an object per unit of its mean contrast n - n_m, in all axes, and 1.7 times that off its contrast:
measured on phantoms of two classes through the hologram path (correlation with it 0.987 -> 0.991, volume -5 % -> -1 %)."""
RYTOV_DILUTION = 1.7
SESSION_NA, SESSION_LIGHT = 0.01, 0.25
"""Standard deviations, relative, of a session's illumination NA and of its light."""


@dataclass(frozen=True, slots=True)
class FastOptics:
    """One instrument at one grid. ``electrons`` per camera pixel sets the noise; ``shape`` and ``voxel_um`` are (z, y, x)."""

    voxel_um: Triple = (0.2, 0.1, 0.1)
    shape: Shape3 = (100, 150, 150)
    optics: Optics = INSTRUMENT
    illumination_na: float = ILLUMINATION_NA
    illumination_start_rad: float = 0.0
    frames: int = FRAMES
    electrons: float = REFERENCE_ELECTRONS
    recipe: Recipe = field(default_factory=Recipe)

    def phantom(self, phantom: Phantom, rng: np.random.Generator, *, offset_um: Triple = (0.0, 0.0, 0.0)) -> Tomogram:
        """Tomogram of a phantom, rendered at twice the resolution of a coarse grid so that its edges are the optics' own."""
        return self.phantom_and_phase(phantom, rng, offset_um=offset_um)[0]

    def phantom_and_phase(
        self, phantom: Phantom, rng: np.random.Generator, *, offset_um: Triple = (0.0, 0.0, 0.0)
    ) -> tuple[Tomogram, NDArray[np.complex64]]:
        """As :meth:`phantom`, and the complex phase of the normally lit frame that the same measurement gave."""
        factor = 2 if self.voxel_um[2] > FINE_PITCH_UM else 1
        widening = RYTOV_WIDENING * phantom.density_g_dl / 100 * RI_INCREMENT_ML_G
        dz, dy, dx = (v / factor / (1 + widening) for v in self.voxel_um)
        nz, ny, nx = (n * factor for n in self.shape)
        oz, oy, ox = (c / (1 + widening) for c in offset_um)
        ri = render(phantom, (dz, dy, dx), (nz, ny, nx), offset_um=(oz, oy, ox))
        medium = np.float32(phantom.medium_ri)
        diluted = medium + (ri - medium) * np.float32(1 - RYTOV_DILUTION * widening)
        samples = self._samples(diluted, rng)
        return self._inverted(samples), self._normal_phase(samples)

    def ideal(self, phantom: Phantom, *, offset_um: Triple = (0.0, 0.0, 0.0)) -> Tomogram:
        """The phantom itself on this grid, free of noise and of optics: each voxel the mean over its own volume.

        What no instrument shows: the yardstick for what the optics cost a classifier.
        """
        nz, ny, nx = (2 * n for n in self.shape)
        dz, dy, dx = (v / 2 for v in self.voxel_um)
        # The middle n // 2 of either grid lies half a fine voxel off the other's: below it where n is even, above where odd.
        oz, oy, ox = (c + (v if n % 2 == 0 else -v) / 2 for c, v, n in zip(offset_um, (dz, dy, dx), self.shape, strict=True))
        ri = torch.from_numpy(render(phantom, (dz, dy, dx), (nz, ny, nx), offset_um=(oz, oy, ox)))
        return self._shown(torch.nn.functional.avg_pool3d(ri[None], 2)[0].numpy())

    def tomogram(self, ri: NDArray[np.float32], rng: np.random.Generator) -> Tomogram:
        """Tomogram of an RI volume [z, y, x] on this grid, or on one of twice its resolution."""
        return self._inverted(self._samples(ri, rng))

    def _samples(self, ri: NDArray[np.float32], rng: np.random.Generator) -> Tensor:
        operator = _operator(self)
        potential = ri_to_potential(torch.from_numpy(np.ascontiguousarray(ri)), self.optics)
        if tuple(ri.shape) != self.shape:
            potential = _halve(potential, self.shape)
        ideal = operator.predict(potential)
        return ideal + self._noise(operator, rng)

    def _inverted(self, samples: Tensor) -> Tomogram:
        optics = self.optics
        operator = _operator(self)
        found = invert(operator.right_hand_side(samples), operator, self.recipe)
        return self._shown(rytov_to_ri(found, optics).float().numpy())

    def _shown(self, ri: NDArray[np.float32]) -> Tomogram:
        optics = self.optics
        nz, ny, nx = self.shape
        dz, dy, dx = self.voxel_um
        return Tomogram(
            ri=ri,
            voxel_um=self.voxel_um,
            medium_ri=optics.medium_ri,
            origin_um=(-(nz // 2) * dz, -(ny // 2) * dy, -(nx // 2) * dx),
            wavelength_um=optics.wavelength_um,
            objective_na=optics.objective_na,
        )

    def _normal_phase(self, samples: Tensor) -> NDArray[np.complex64]:
        """psi = ln|w| + i arg(w), unwrapped, of frame 0 (lit along the axis), complex64 [y, x], in the plane of the middle.

        The Fourier diffraction theorem read backwards: psi^ = i y dz / (2 k_z).
        """
        caps = _operator(self).caps
        _, ny, nx = self.shape
        here = caps.frame == 0
        spectrum = torch.zeros(ny * nx, dtype=torch.complex64)
        spectrum[caps.column[here]] = 1j * samples[here] * self.voxel_um[0] / (2 * caps.k_z[here])
        psi: NDArray[np.complex64] = torch.fft.fftshift(torch.fft.ifft2(spectrum.reshape(ny, nx))).numpy()
        return psi

    def _noise(self, operator: EwaldOperator, rng: np.random.Generator) -> Tensor:
        """Noise of the samples: white in the complex phase, plus each frame's offset at K = 0.

        y = -2 i k_z psi^/dz in units of summed pixels, so white noise of density s gives |y| ~ 2 k_z s sqrt(n) / (dx dz).
        """
        caps = operator.caps
        _, ny, nx = self.shape
        dz, _, dx = self.voxel_um
        density = PHASE_NOISE_RAD_UM * (REFERENCE_ELECTRONS / self.electrons) ** 0.5
        count = len(caps.column)
        white = torch.from_numpy(rng.standard_normal((count, 2), dtype=np.float32)).mul_(density / dx * (ny * nx / 2) ** 0.5)
        level = rng.standard_normal((operator.frames, 2)) * LEVEL_NOISE_RAD * ny * nx
        offsets = torch.from_numpy(level.astype(np.float32))[caps.frame] * (caps.column == 0)[:, None]
        return torch.view_as_complex(white + offsets) * (2 * caps.k_z / dz)


def half_resolution(recipe: Recipe | None = None, *, session: int | None = None) -> FastOptics:
    """The grid of data sets: 50 x 75 x 75 voxels of 0.4 x 0.2 x 0.2 um, an eighth of the full one's cost.

    ``session``: its number decides where the illumination circle begins, how wide it is and how much light there is, each as
    it differs from one day at the microscope to the next; without one, all are as designed.
    """
    base = FastOptics()
    if session is not None:
        rng = np.random.default_rng(np.random.SeedSequence(session, spawn_key=(9,)))
        start, (na, light) = rng.uniform(0, 2 * np.pi), rng.standard_normal(2)
        base = replace(
            base,
            illumination_start_rad=float(start),
            illumination_na=base.illumination_na * (1 + SESSION_NA * float(np.clip(na, -2, 2))),
            electrons=base.electrons * float(np.exp(SESSION_LIGHT * light)),
        )
    shape = (base.shape[0] // 2, base.shape[1] // 2, base.shape[2] // 2)
    voxel = (base.voxel_um[0] * 2, base.voxel_um[1] * 2, base.voxel_um[2] * 2)
    return replace(base, shape=shape, voxel_um=voxel, recipe=recipe or Recipe())


_OF_NO_OPTICS: Final = (
    ("reconstruction", "unstated_medium"),
    ("quality", "max_axis_uncertainty"),
    ("quality", "accept_own_tomograms"),
)
"""Fields of the recipe that came after the digest was frozen, and say how files are judged: no volume is another for them."""


@lru_cache(maxsize=1)
def optics_digest() -> str:
    """BLAKE2b-128 of what the fast optics are besides the inversion: instrument, noise, widening, sessions."""
    instrument = asdict(half_resolution())
    for section, name in _OF_NO_OPTICS:
        del instrument["recipe"][section][name]
    said = {
        "instrument": instrument,
        "noise": [PHASE_NOISE_RAD_UM, LEVEL_NOISE_RAD, REFERENCE_ELECTRONS],
        "rytov": [RYTOV_WIDENING, RYTOV_DILUTION],
        "session": [SESSION_NA, SESSION_LIGHT],
        "fine_pitch_um": FINE_PITCH_UM,
    }
    return hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=64)
def _operator(fast: FastOptics) -> EwaldOperator:
    """Sampling of the geometry; the electrons do not matter to it, but instruments are few."""
    k_in = illumination(fast.optics, na=fast.illumination_na, frames=fast.frames, start_rad=fast.illumination_start_rad)
    return EwaldOperator(k_in, fast.optics, fast.shape, fast.voxel_um)


def _halve(volume: Tensor, shape: Shape3) -> Tensor:
    """Volume at half the resolution with the same spectrum below its Nyquist frequencies (no averaging); middle on middle."""
    spectrum = torch.fft.rfftn(volume)
    nz, ny, nx = shape
    rows = torch.cat([torch.arange((ny + 1) // 2), torch.arange(-(ny // 2), 0)])
    slices = torch.cat([torch.arange((nz + 1) // 2), torch.arange(-(nz // 2), 0)])
    cut = spectrum[slices][:, rows][:, :, : nx // 2 + 1]
    out: Tensor = torch.fft.irfftn(cut, s=shape) * (nz * ny * nx / volume.numel())
    # Index n // 2 is the middle of both grids only when the coarse n is even; else the fine middle falls a half voxel off.
    for axis, (n, m) in enumerate(zip(shape, volume.shape, strict=True)):
        out = _shift(out, axis, n // 2 - (m // 2) / 2)
    return out


def _shift(volume: Tensor, axis: int, voxels: float) -> Tensor:
    if not voxels:
        return volume
    n = volume.shape[axis]
    phase = torch.polar(torch.ones(n), -2 * torch.pi * torch.fft.fftfreq(n) * voxels)
    view = [1, 1, 1]
    view[axis] = n
    out: Tensor = torch.fft.ifft(torch.fft.fft(volume, dim=axis) * phase.reshape(view), dim=axis)
    return out.real
