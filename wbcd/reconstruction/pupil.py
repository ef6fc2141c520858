"""The objective's rim, seen in raw frames: light scattered to all sides ends where the pupil does.

The rim lies NA/lambda about the carrier, so where NA and wavelength are known it gives the pixel size, and the circle of
illumination over it the illumination's NA whatever the pixels are.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from wbcd.records import HologramStack

# Rings of half a frequency bin, within this share of the stated rim: no pixel size is known worse.
REACH = 0.25
# The fit sees so many bins on either side; a Hann window blurs over two.
BINS = 5.5
# Power just inside the rim over that outside; less is no rim but the slope of the light's own halo.
LEAST_DROP = 10.0


def measure_rim(stack: HologramStack, carrier_cycles_um: tuple[float, float]) -> float | None:
    """Radius of the pupil about the carrier, as NA at the stated pixel size; None where no light reaches the rim.

    Of 49 frames of a bead it is found within 0.3 %. Model: power falling exponentially up to the rim, nothing but camera noise
    beyond, blurred by the window, fitted to the logarithm of the median over each ring.
    """
    optics = stack.optics
    rim = optics.objective_na / optics.wavelength_um
    radius, power = _profile(stack, carrier_cycles_um, rim)
    width = 1 / (max(stack.holograms.shape[1:]) * optics.pixel_size_um) / rim
    if len(power) < 8:
        return None
    at = float(radius[np.argmin(np.gradient(np.log(power)))])
    drop = 0.0
    for _ in range(3):
        near = np.abs(radius - at) < BINS * width
        if near.sum() < 8:
            return None
        at, drop = _fitted(radius[near], np.log(power[near]), at, width)
    return at * optics.objective_na if drop > LEAST_DROP and abs(at - 1) < REACH else None


def _profile(stack: HologramStack, carrier: tuple[float, float], rim: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle of each ring in units of the stated rim, and the median power in it, summed over the frames."""
    pixel = stack.optics.pixel_size_um
    ny, nx = stack.holograms.shape[1:]
    window = np.outer(np.hanning(ny), np.hanning(nx)).astype(np.float32)
    power = np.zeros((ny, nx // 2 + 1))
    for frame in stack.holograms:
        power += np.abs(np.fft.rfft2(frame * window)) ** 2
    # A real frame repeats its spectrum every 1/pixel: the pupil may reach over the edge.
    dy = (np.fft.fftfreq(ny, pixel) - carrier[1] + 0.5 / pixel) % (1 / pixel) - 0.5 / pixel
    distance = np.hypot(dy[:, None], np.fft.rfftfreq(nx, pixel)[None, :] - carrier[0]) / rim
    edges = np.arange(1 - REACH, 1 + REACH, 0.5 / (max(ny, nx) * pixel * rim))
    ring = np.digitize(distance.ravel(), edges)
    order = np.argsort(ring, kind="stable")
    bounds = np.searchsorted(ring[order], np.arange(1, len(edges) + 1))
    flat = power.ravel()[order]
    parts = [flat[a:b] for a, b in pairwise(bounds)]
    middles = (edges[1:] + edges[:-1]) / 2
    full = np.array([len(part) > 0 for part in parts])
    return middles[full], np.array([max(float(np.median(part)), 1e-30) for part in parts if len(part)])


def _fitted(radius: NDArray[np.float64], logarithm: NDArray[np.float64], at: float, width: float) -> tuple[float, float]:
    """Place of the rim and the drop of the power there."""
    bins = np.arange(-4, 4.001, 0.1)
    # |transform of a Hann window|^2 along one axis; at one bin its value is a limit.
    beside = np.where(np.isclose(np.abs(bins), 1), 2.0, bins)
    blur = np.where(np.isclose(np.abs(bins), 1), 0.5, np.sinc(bins) / (1 - beside**2)) ** 2
    blur = blur / blur.sum()
    places = radius[:, None] - bins[None, :] * width

    def model(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        inside, slope, rim, floor = parameters
        light = np.where(places < rim, np.exp(np.clip(inside - slope * (places - rim), -60, 60)), 0.0)
        found: NDArray[np.float64] = np.log(light @ blur + np.exp(floor)) - logarithm
        return found

    start = np.array([logarithm[:3].mean(), 5.0, at, logarithm[-4:].mean()])
    inside, _, rim, floor = least_squares(model, start, x_scale=[1.0, 10.0, width, 1.0]).x
    return float(rim), float(np.exp(np.clip(inside - floor, -60, 60)))
