"""Complex fields -> Rytov spectra on Ewald caps, one stack for each object window.

Locate the object, bring it into focus, take the complex phase, fold it to the window's period. Refocusing uses the Fourier
diffraction theorem at K = 0: the gradient of each frame's spectrum there is the object's mass centroid, shifted by
-z k_in/k_z, so a straight line through all frames gives the height of the centre of mass (and what is left over per frame is
motion).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from wbcd.recipe import Recipe
from wbcd.reconstruction.unwrap import residues, turns, unwrap
from wbcd.records import FieldStack, Optics

OBJECT_PHASE_RAD = 0.25
MIN_OBJECT_UM2 = 3.0
SMOOTHING_UM = 0.5
TAPER_UM = 2.0
HALO_UM = 3.0
EDGE_PX = 2
# A single cell's centre of mass lies within half a micrometre of the middle of its shadow.
LOPSIDED_UM = 1.0
FAINTEST = 0.05
# Every third pixel each way: thousands are left, whose median is as good.
FLOOR_STEP = 3


@dataclass(frozen=True, slots=True)
class Window:
    """Lateral window of one reconstruction: centre (y, x) in pixels, size in pixels, radius of the object in um.

    ``cut``: (y0, y1, x0, x1) in pixels of each object that reaches the edge of the field of view; ``objects``: how many the
    window holds.
    """

    centre: tuple[float, float]
    size: tuple[int, int]
    radius_um: float
    cut: tuple[tuple[int, int, int, int], ...] = ()
    objects: int = 1


@dataclass(frozen=True, slots=True)
class RytovStack:
    """Folded complex phases of one window, complex64 [frame, y, x], centred on the window; the object is at height 0."""

    psi: Tensor
    k_in_rad_um: NDArray[np.float64]
    pixel_um: float
    centre_px: tuple[float, float]
    focus_um: float
    frame_shift_um: NDArray[np.float64]
    residue_count: int
    optics: Optics


def wave_numbers(optics: Optics) -> tuple[float, float]:
    """(k0, k) in rad/um: in vacuum and in the medium."""
    k0 = 2 * math.pi / optics.wavelength_um
    return k0, k0 * optics.medium_ri


def locate(fields: FieldStack, recipe: Recipe) -> list[Window]:
    """Windows that hold the objects of the field of view; [] when it is empty.

    One object that stands alone gets the recipe's window. Several share one window that spans them all: folding would
    otherwise lay one over the other.
    """
    w = fields.w[fields.normal_frame]
    departure = ndimage.gaussian_filter(np.abs(w / np.maximum(np.abs(w), 1e-6) - 1), SMOOTHING_UM / fields.pixel_um)
    labels, count = ndimage.label(departure > OBJECT_PHASE_RAD)
    if not count:
        return []
    areas = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1)) * fields.pixel_um**2
    boxes = [box for box, area in zip(ndimage.find_objects(labels), areas, strict=True) if area >= MIN_OBJECT_UM2]
    if not boxes:
        return []
    low = [min(box[axis].start for box in boxes) for axis in (0, 1)]
    high = [max(box[axis].stop for box in boxes) for axis in (0, 1)]
    extent_um = max(b - a for a, b in zip(low, high, strict=True)) * fields.pixel_um
    centre = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
    base = (recipe.reconstruction.shape[1], recipe.reconstruction.shape[2])
    size = tuple(max(n, good_size(math.ceil((b - a) + 2.0 / fields.pixel_um))) for n, a, b in zip(base, low, high, strict=True))
    cut = tuple(
        (y.start, y.stop, x.start, x.stop)
        for y, x in boxes
        if min(y.start, x.start) <= EDGE_PX or y.stop >= w.shape[0] - EDGE_PX or x.stop >= w.shape[1] - EDGE_PX
    )
    return [Window(centre, (size[0], size[1]), extent_um / 2, cut, len(boxes))]


def good_size(n: int) -> int:
    """Smallest even number >= n with no prime factor over 5: FFTs of such lengths are quick."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def rytov(
    fields: FieldStack, window: Window, recipe: Recipe, *, device: str = "cpu", focus_um: float | None = None
) -> RytovStack:
    """Complex phases of one window: refocused to the object's centre of mass, unwrapped, folded to the window's period.

    ``focus_um``: the plane to refocus to, where it is not the centre of all that the window holds.
    """
    w = torch.from_numpy(fields.w).to(device)
    k_in = fields.k_in_rad_um
    slope = tilt(k_in, fields.optics)
    energy = (w.real - 1).square_().add_(w.imag.square())
    rough = _centroids(_near(energy, window, fields.pixel_um), fields.pixel_um)
    focus, centre, _ = _height(rough, slope)
    box_centre = (window.centre[0] * fields.pixel_um, window.centre[1] * fields.pixel_um)
    # Where several cells stand together the centre of mass lies in the heaviest: others would fall out of a window about it.
    lopsided = window.objects > 1 or math.dist(centre, box_centre) > LOPSIDED_UM
    if lopsided:
        centre = box_centre
    limit = recipe.reconstruction.refocus_range_um
    focus = float(np.clip(focus if focus_um is None else focus_um, -limit, limit)) if recipe.reconstruction.refocus else 0.0
    if focus:
        w = refocus(w, k_in, fields.pixel_um, fields.optics, focus)
    cut, corner = _cut(w, centre, fields.pixel_um, window)
    phase = torch.angle(cut)
    found = turns(phase)
    charge = residues(found)
    phase = unwrap(phase, found)
    power = cut.real.square().add_(cut.imag.square())
    psi = torch.complex(power.clamp_min_(FAINTEST**2).log_().mul_(0.5), phase)
    # Near the edge of the field the cut is not about the object: its shadows are looked for where it is.
    middle = (centre[0] / fields.pixel_um - corner[0], centre[1] / fields.pixel_um - corner[1])
    mask = shadow(psi.shape[-2:], window.radius_um, slope, fields.pixel_um, device, middle)
    psi = level_outside(psi, mask)
    weighted = psi * mask
    centroids = _centroids(weighted.imag.clamp_min(0), fields.pixel_um)
    _, local, shift = _height(centroids, slope)
    if lopsided:
        local = (middle[0] * fields.pixel_um, middle[1] * fields.pixel_um)
    inside = mask[:, :-1, :-1] > 0.5
    centre_px = (corner[0] + local[0] / fields.pixel_um, corner[1] + local[1] / fields.pixel_um)
    folded = fold(weighted, (round(local[0] / fields.pixel_um), round(local[1] / fields.pixel_um)), window.size)
    return RytovStack(
        psi=folded,
        k_in_rad_um=k_in,
        pixel_um=fields.pixel_um,
        centre_px=(float(round(centre_px[0])), float(round(centre_px[1]))),
        focus_um=focus,
        frame_shift_um=shift,
        residue_count=int(((charge != 0) & inside).sum()),
        optics=fields.optics,
    )


def tilt(k_in: NDArray[np.float64], optics: Optics) -> NDArray[np.float64]:
    """tan(theta) (x, y) of each illumination: k_in / k_z."""
    _, k = wave_numbers(optics)
    slope: NDArray[np.float64] = k_in / np.sqrt(np.maximum(k**2 - (k_in**2).sum(1, keepdims=True), 1e-3))
    return slope


def _near(weight: Tensor, window: Window, pixel_um: float) -> Tensor:
    """Weight inside a disc that holds the object's shadow at any height within reach; noise outside is cut."""
    ny, nx = weight.shape[-2:]
    y = torch.arange(ny, device=weight.device)[:, None] - window.centre[0]
    x = torch.arange(nx, device=weight.device)[None, :] - window.centre[1]
    reach = (window.radius_um * 1.7 + 5.0) / pixel_um
    disc = (y.square() + x.square()) < reach**2
    beside = ~disc[::FLOOR_STEP, ::FLOOR_STEP]
    floor = weight.new_zeros(len(weight))
    if bool(beside.any()):
        floor = weight[:, ::FLOOR_STEP, ::FLOOR_STEP][:, beside].median(1).values
    return (weight - 2 * floor[:, None, None]).clamp_min(0) * disc


def _centroids(weight: Tensor, pixel_um: float) -> NDArray[np.float64]:
    """Centroid (y, x) of each frame's weight in um, [frame, 2]."""
    total = weight.sum((-2, -1)).double().clamp_min(1e-12)
    y = torch.arange(weight.shape[-2], device=weight.device, dtype=torch.float64)
    x = torch.arange(weight.shape[-1], device=weight.device, dtype=torch.float64)
    cy = (weight.sum(-1).double() * y).sum(-1) / total
    cx = (weight.sum(-2).double() * x).sum(-1) / total
    centroids: NDArray[np.float64] = torch.stack([cy, cx], 1).cpu().numpy() * pixel_um
    return centroids


def _height(
    centroids: NDArray[np.float64], slope: NDArray[np.float64]
) -> tuple[float, tuple[float, float], NDArray[np.float64]]:
    """Height (um), centre (y, x in um) and what is left over per frame (um) from centroids c = c0 - z tan(theta).

    Fitted by reweighted least squares: a frame that disagrees must not move the focus.
    """
    n = len(centroids)
    design = np.zeros((2 * n, 3))
    design[:n, 0], design[n:, 1] = 1, 1
    design[:n, 2], design[n:, 2] = -slope[:, 1], -slope[:, 0]
    values = np.concatenate([centroids[:, 0], centroids[:, 1]])
    weight: NDArray[np.floating] = np.ones(2 * n)
    solution: NDArray[np.floating] = np.zeros(3)
    for _ in range(5):
        solution = np.linalg.lstsq(design * weight[:, None], values * weight, rcond=None)[0]
        left = values - design @ solution
        scale = max(1.4826 * float(np.median(np.abs(left))), 1e-6)
        weight = 1 / np.sqrt(1 + (left / (3 * scale)) ** 2)
    left = values - design @ solution
    return float(solution[2]), (float(solution[0]), float(solution[1])), np.hypot(left[:n], left[n:])


def refocus(w: Tensor, k_in: NDArray[np.float64], pixel_um: float, optics: Optics, height_um: float) -> Tensor:
    """Fields in the plane at ``height_um`` above the recorded one: w^(K) exp[i (k_z(K + k_in) - k_z0) z].

    What lies outside the pupil is noise that the division by the reference has left; it is cut.
    """
    k0, k = wave_numbers(optics)
    pupil = min(optics.objective_na * k0, k) ** 2
    ny, nx = w.shape[-2:]
    ky = 2 * math.pi * torch.fft.fftfreq(ny, pixel_um, device=w.device)
    kx = 2 * math.pi * torch.fft.fftfreq(nx, pixel_um, device=w.device)
    out = torch.empty_like(w)
    for i, (px, py) in enumerate(k_in):
        kt2 = ((kx[None, :] + px).square() + (ky[:, None] + py).square()).flatten()
        inside = torch.nonzero(kt2 <= pupil)[:, 0]
        phase = ((k**2 - kt2[inside]).clamp_min(0).sqrt() - math.sqrt(max(k**2 - px**2 - py**2, 0.0))) * height_um
        spectrum = torch.zeros(ny * nx, dtype=w.dtype, device=w.device)
        spectrum[inside] = torch.fft.fft2(w[i]).flatten()[inside] * torch.polar(torch.ones_like(phase), phase)
        out[i] = torch.fft.ifft2(spectrum.reshape(ny, nx))
    return out


def _cut(w: Tensor, centre_um: tuple[float, float], pixel_um: float, window: Window) -> tuple[Tensor, tuple[int, int]]:
    """The part of the field of view that holds every shadow of the object, and its corner in pixels."""
    reach = (window.radius_um * 1.7 + HALO_UM + TAPER_UM) / pixel_um
    half = [min(max(n / 2, reach), n * 1.0) for n in window.size]
    corner, stop = [], []
    for axis, n in enumerate(w.shape[-2:]):
        middle = centre_um[axis] / pixel_um
        low = max(0, round(middle - half[axis]))
        high = min(n, low + good_size(round(2 * half[axis])))
        corner.append(low)
        stop.append(max(high, low + 8))
    return w[:, corner[0] : stop[0], corner[1] : stop[1]], (corner[0], corner[1])


def shadow(
    shape: torch.Size | tuple[int, ...],
    radius_um: float,
    slopes: NDArray[np.float64],
    pixel_um: float,
    device: str,
    middle: tuple[float, float] | None = None,
) -> Tensor:
    """Soft mask [frame, y, x] over each frame's shadow: a disc stretched by 1/cos(theta) along the tilt, cosine edge.

    ``middle``: where the object is, (y, x) in pixels; else it is in the middle.
    """
    ny, nx = shape
    cy, cx = (ny // 2, nx // 2) if middle is None else middle
    y = (torch.arange(ny, device=device) - cy)[:, None] * pixel_um
    x = (torch.arange(nx, device=device) - cx)[None, :] * pixel_um
    masks = torch.empty((len(slopes), ny, nx), device=device)
    for i, (tx, ty) in enumerate(slopes):
        slope = math.hypot(tx, ty)
        stretch = math.sqrt(1 + slope**2)
        ux, uy = (tx / slope, ty / slope) if slope > 1e-6 else (1.0, 0.0)
        along, across = x * ux + y * uy, y * ux - x * uy
        outer = radius_um + HALO_UM
        distance = torch.hypot(along / (1 + (stretch - 1) * radius_um / outer), across) - outer
        masks[i] = (0.5 - 0.5 * torch.sin(math.pi * (distance / TAPER_UM).clamp(-0.5, 0.5))).float()
    return masks


def level_outside(psi: Tensor, mask: Tensor) -> Tensor:
    """Subtract the mean of what lies outside the shadow: a constant there is the instrument's, not the object's."""
    outside = (mask < 0.01).float()
    weight = outside.sum((-2, -1)).clamp_min(1.0)
    sums = outside.flatten(1)[:, None] @ torch.view_as_real(psi).flatten(1, 2)
    level = torch.view_as_complex(sums[:, 0]) / weight
    return psi - torch.where(weight > 50, level, torch.zeros_like(level))[:, None, None]


def fold(psi: Tensor, centre: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Periodic sum with the window's period, the centre moved to the middle of the window.

    The spectrum of the folded array at the window's frequencies is exactly that of the unfolded one.
    """
    parts = [_periods(n, middle, period) for n, middle, period in zip(psi.shape[-2:], centre, size, strict=True)]
    folded = psi.new_zeros((*psi.shape[:-2], *size))
    for source_y, y in parts[0]:
        for source_x, x in parts[1]:
            folded[..., y, x] += psi[..., source_y, source_x]
    return folded


def _periods(n: int, middle: int, period: int) -> list[tuple[slice, slice]]:
    """Where each period of an axis of ``n`` pixels begins and ends, and where it goes; ``middle`` to the middle."""
    before = (period // 2 - middle) % period
    starts = range(-before, n, period)
    return [(slice(max(start, 0), min(start + period, n)), slice(max(-start, 0), min(n - start, period))) for start in starts]
