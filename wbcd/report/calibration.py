"""The picture of a calibration: where the sidebands lie, the circle of light, the fringes, and the lens."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.reconstruction.instrument import ZERNIKE, Calibration, zernike

_BLUE, _RED, _GREY = "#1f5fa8", "#b03030", "#888888"


def calibration_png(
    calibration: Calibration, frame: NDArray[np.unsignedinteger[Any]], k_in_rad_um: NDArray[np.float64], contrast: NDArray[Any]
) -> bytes:
    """PNG of four panels: spectrum of ``frame`` [y, x] (the normal one), illumination ``k_in_rad_um`` [frame, 2], fringe
    ``contrast`` [frame], and the phase over the pupil where a bead was fitted. Needs matplotlib (the extra ``train``).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    _spectrum(axes[0, 0], calibration, frame)
    _ring(axes[0, 1], calibration, k_in_rad_um)
    _contrast(axes[1, 0], contrast)
    _pupil(figure, axes[1, 1], calibration)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    pyplot.close(figure)
    return buffer.getvalue()


def _spectrum(axis: Any, calibration: Calibration, frame: NDArray[Any]) -> None:
    optics = calibration.optics
    ny, nx = frame.shape
    window = np.outer(np.hanning(ny), np.hanning(nx))
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2((frame - frame.mean()) * window)))
    half = 0.5 / optics.pixel_size_um
    axis.imshow(np.log10(amplitude + amplitude.max() * 1e-5), cmap="gray", origin="lower", extent=(-half, half, -half, half))
    pupil = optics.objective_na / optics.wavelength_um
    fx, fy = (k / (2 * math.pi) for k in calibration.carrier_rad_um)
    for x, y, radius, colour, name in (
        (0.0, 0.0, 2 * pupil, _GREY, "zero order"),
        (fx, fy, pupil, _BLUE, "sideband"),
        (-fx, -fy, pupil, _RED, "conjugate"),
    ):
        _circle(axis, x, y, radius, colour, name)
    axis.set(title=f"spectrum: {calibration.carrier_separation:.2f} NA/lambda from the zero order", xlim=(-half, half))
    axis.set(ylim=(-half, half), xlabel="f_x, cycles/um", ylabel="f_y, cycles/um")
    _legend(axis)


def _legend(axis: Any) -> None:
    """Beside the axes, where nothing that is drawn lies under it."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=8)


def _circle(axis: Any, x: float, y: float, radius: float, colour: str, name: str | None = None) -> None:
    angle = np.linspace(0, 2 * np.pi, 361)
    axis.plot(x + radius * np.cos(angle), y + radius * np.sin(angle), color=colour, lw=1, label=name)


def _ring(axis: Any, calibration: Calibration, k_in: NDArray[np.float64]) -> None:
    ring, optics = calibration.ring, calibration.optics
    na = k_in * optics.wavelength_um / (2 * math.pi)
    axis.scatter(na[:, 0], na[:, 1], s=14, color=_BLUE, zorder=3)
    _circle(axis, *ring.centre_na, ring.radius_na, _BLUE, f"fitted: NA {ring.radius_na:.4f}")
    _circle(axis, 0, 0, optics.objective_na, _GREY, f"objective: NA {optics.objective_na:g}")
    for gap in ring.gaps_deg:
        x, y = (ring.centre_na[i] + ring.radius_na * f(math.radians(gap)) for i, f in enumerate((math.cos, math.sin)))
        axis.plot(x, y, "x", color=_RED, ms=9, mew=2)
    found = f"roundness {100 * ring.roundness:.2f} %, {len(ring.gaps_deg)} missing, {len(ring.repeated)} repeated"
    axis.set(title=f"illumination: {found}", xlabel="NA, x", ylabel="NA, y")
    axis.set_aspect("equal")
    _legend(axis)


def _contrast(axis: Any, contrast: NDArray[Any]) -> None:
    axis.bar(np.arange(len(contrast)), contrast, color=_BLUE, width=0.9)
    axis.set(title=f"fringe contrast: median {np.median(contrast):.2f}", xlabel="frame", ylabel="visibility", ylim=(0, 1))


def _pupil(figure: Any, axis: Any, calibration: Calibration) -> None:
    bead = calibration.bead
    if bead is None:
        axis.axis("off")
        axis.text(0.5, 0.5, "no bead was given: the lens is not judged", ha="center", va="center", color=_GREY)
        return
    line = np.linspace(-1, 1, 161)
    x, y = np.meshgrid(line, line)
    points = np.column_stack([x.ravel(), y.ravel()])
    terms = [bead.zernike_rad[name] * zernike(*ZERNIKE[name], points) for name in bead.zernike_rad]
    phase = np.where(np.hypot(x, y) <= 1, np.sum(terms, axis=0).reshape(x.shape), np.nan)
    limit = max(float(np.nanmax(np.abs(phase))), 0.1)
    image = axis.imshow(phase, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", extent=(-1, 1, -1, 1))
    figure.colorbar(image, ax=axis, label="rad", shrink=0.8)
    error = 100 * (bead.pixel_size_um / calibration.optics.pixel_size_um - 1)
    axis.set(title=f"pupil phase: {bead.zernike_rms_rad:.2f} rad rms; pixel {bead.pixel_size_um:.5f} um ({error:+.2f} %)")
    axis.set(xlabel="pupil, x", ylabel="pupil, y")
