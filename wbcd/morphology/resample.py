"""Cutting a window out of a volume at another pitch: separable cubic convolution, widened when it must not alias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wbcd.records import Shape3, Triple

#: Half-width of the cubic kernel in samples.
KERNEL_RADIUS = 2.0
#: Pitches closer than this, relatively, are the same; values are then copied, not interpolated.
SAME_PITCH = 1e-3


def keys_kernel(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution kernel with a = -1/2, exact for parabolas (Keys 1981, IEEE TASSP 29:1153, eq. 15)."""
    t = np.abs(t)
    near = (1.5 * t - 2.5) * t * t + 1.0
    far = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return np.where(t <= 1.0, near, np.where(t < KERNEL_RADIUS, far, 0.0))


def axis_weights(length: int, positions: NDArray[np.float64], ratio: float) -> NDArray[np.float32]:
    """Weights float32 [len(positions), length] that sample an axis at fractional ``positions``.

    ``ratio`` is output pitch over input pitch; above 1 the kernel is stretched by it, which is the anti-aliasing filter.
    Rows sum to 1 inside the axis and to less where the kernel hangs over its ends: there the signal is taken as zero.
    """
    stretch = max(ratio, 1.0)
    distance = (positions[:, None] - np.arange(length, dtype=np.float64)[None, :]) / stretch
    weights = keys_kernel(distance)
    # A stretched kernel sums to the stretch only on average; divide by the sum it has on an endless axis.
    reach = int(np.ceil(KERNEL_RADIUS * stretch))
    offsets = np.arange(-reach, reach + 1, dtype=np.float64)
    fraction = positions - np.round(positions)
    total = keys_kernel((fraction[:, None] - offsets[None, :]) / stretch).sum(axis=1)
    return np.asarray(weights / total[:, None], dtype=np.float32)


def copy_window(volume: NDArray[np.float32], start: tuple[int, ...], shape: Shape3) -> NDArray[np.float32]:
    """Window [z, y, x] of ``shape`` that begins at voxel ``start``; zero outside the volume."""
    window = np.zeros(shape, dtype=volume.dtype)
    source, target = [], []
    for first, count, length in zip(start, shape, volume.shape, strict=True):
        low, high = max(first, 0), min(first + count, length)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - first, max(high, low) - first))
    window[tuple(target)] = volume[tuple(source)]
    return window


def resample_window(
    volume: NDArray[np.float32], voxel_um: Triple, centre_px: Triple, shape: Shape3, pitch_um: Triple
) -> NDArray[np.float32]:
    """Window float32 [z, y, x] of ``shape`` at ``pitch_um``, its middle voxel (shape // 2) at ``centre_px`` of the volume.

    ``volume`` is a departure from the medium, so that zero is what lies outside. Equal pitches copy whole voxels.
    """
    ratios = tuple(out / given for out, given in zip(pitch_um, voxel_um, strict=True))
    if all(abs(ratio - 1.0) < SAME_PITCH for ratio in ratios):
        start = tuple(round(centre) - count // 2 for centre, count in zip(centre_px, shape, strict=True))
        return copy_window(volume, start, shape)
    result = volume
    for axis, (ratio, centre, count) in enumerate(zip(ratios, centre_px, shape, strict=True)):
        positions = centre + (np.arange(count, dtype=np.float64) - count // 2) * ratio
        weights = axis_weights(volume.shape[axis], positions, ratio)
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result, dtype=np.float32)
