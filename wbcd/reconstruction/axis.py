"""Where the optical axis lies among the directions of light: what a scan draws, its centre, and the frame nearest to it.

Pure geometry of points [frame, 2] in units of the objective's NA. A scan draws a circle (or an ellipse, where its two mirrors
differ), with or without a frame lit along the axis; or it fills a disc, as a spiral, a grid or several circles. Nothing is
assumed of the order of the frames but that a spiral begins or ends at its centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

# A frame this near to the centre, in radii of the circle, is the normal one; those of the circle are at 1.
CENTRAL = 0.35
# Of a disc, whose centre is known worse: frames that may be normal, and one that is whatever its place in the scan.
DISC_CENTRAL = 0.2
DISC_NEAR = 0.12
# A point is on the circle within this share of the radius, or within this much of the NA.
ON_CIRCLE = 0.05
LEAST_ON_CIRCLE = 0.01
# A circle holds so many of the frames; half of them may belong to another about the same centre.
CIRCLE_SHARE = 0.4
# Fewer points that lie on a circle without a frame in its middle may do so by chance.
CIRCLE_FRAMES = 5
ELLIPSE_FRAMES = 8
LEAST_AXIS_RATIO = 0.5
DISC_FRAMES = 6
RADIUS = (0.05, 1.1)
# What the frames' peaks are known to at best.
LEAST_NOISE = 0.001
# Every triple of so few points is tried.
ALL_TRIPLES = 12
# A pattern mirrored at its centre falls on itself: so near, in radii, for this share of its points.
MIRRORED = 0.1
MIRRORED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Pattern:
    """What the directions draw; lengths in units of the objective's NA.

    ``centre`` (x, y); ``uncertainty``: standard uncertainty of it; ``central``: frames that may be lit along the axis, the
    likeliest first; ``reach``: how far from the centre such a frame may be, in radii.
    """

    centre: tuple[float, float]
    radius: float
    uncertainty: float
    central: tuple[int, ...]
    reach: float = CENTRAL

    def distance(self, point: Sequence[float] | Points) -> float:
        """From the centre, in radii."""
        return math.hypot(point[0] - self.centre[0], point[1] - self.centre[1]) / self.radius


def fit_pattern(points: Points, usable: NDArray[np.bool_]) -> Pattern | None:
    """The pattern of the ``usable`` points [frame, 2]; None where they are too few, or too close together, to draw one."""
    frames = np.flatnonzero(usable)
    kept = points[frames]
    if len(kept) < 4 or _spread(kept) < RADIUS[0]:
        return None
    circle, ellipse = _circle(kept), _ellipse(kept)
    best = ellipse if ellipse is not None and (circle is None or ellipse[0] > circle[0] + 0.05) else circle
    if best is not None:
        share, centre, radius, uncertainty, away = best
        near = np.flatnonzero(away < CENTRAL)
        on_circle = round(share * len(kept))
        if near.size or on_circle >= CIRCLE_FRAMES:
            order = near[np.argsort(np.round(away[near], 2), kind="stable")]
            return Pattern(_pair(centre), radius, uncertainty, tuple(int(frames[i]) for i in order))
    return _disc(kept, frames)


def _pair(values: Points) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _spread(points: Points) -> float:
    return float(np.hypot(*(points - np.median(points, 0)).T).max())


# --- circle and ellipse ----------------------------------------------------------------------------

_Round = tuple[float, Points, float, float, Points]
"""Share of the points on it, centre, radius, uncertainty of the centre, distance of each point from the centre in radii."""


def _circle(points: Points) -> _Round | None:
    """The circle that most points lie on, or within its middle: the best of many triples, then least squares."""
    best: tuple[float, NDArray[np.bool_]] | None = None
    for triple in _triples(len(points)):
        found = _through(points[list(triple)])
        if found is None:
            continue
        centre, radius = found
        away = np.hypot(*(points - centre).T)
        on = np.abs(away - radius) <= max(ON_CIRCLE * radius, LEAST_ON_CIRCLE)
        score = float(on.sum() + (away < CENTRAL * radius).sum()) - float(np.abs(away - radius)[on].mean()) / radius
        if best is None or score > best[0]:
            best = score, on
    if best is None or best[1].sum() < max(3.0, CIRCLE_SHARE * len(points)):
        return None
    on = best[1]
    centre, radius, uncertainty = _fitted_circle(points[on])
    if not RADIUS[0] <= radius <= RADIUS[1]:
        return None
    return float(on.mean()), centre, radius, uncertainty, np.hypot(*(points - centre).T) / radius


def _triples(count: int) -> Iterator[tuple[int, int, int]]:
    if count <= ALL_TRIPLES:
        yield from combinations(range(count), 3)
        return
    for first in range(count):
        for second, third in ((count // 3, 2 * count // 3), (count // 4, count // 2), (count // 7, 3 * count // 5)):
            yield first, (first + second) % count, (first + third) % count


def _through(three: Points) -> tuple[Points, float] | None:
    """Centre and radius of the circle through three points [3, 2]; None where it is no circle that light could draw."""
    design = 2 * (three[1:] - three[0])
    if abs(float(np.linalg.det(design))) < 1e-6:
        return None
    squares = (three**2).sum(1)
    centre: Points = np.linalg.solve(design, squares[1:] - squares[0])
    radius = float(np.hypot(*(three[0] - centre)))
    return (centre, radius) if RADIUS[0] <= radius <= RADIUS[1] else None


def _fitted_circle(points: Points) -> tuple[Points, float, float]:
    """Centre, radius and the centre's standard uncertainty by geometric least squares (Gauss-Newton from Kasa's fit)."""
    design = np.column_stack([2 * points, np.ones(len(points))])
    centre = np.linalg.lstsq(design, (points**2).sum(1), rcond=None)[0][:2]
    radius = float(np.hypot(*(points - centre).T).mean())
    for _ in range(10):
        away = points - centre
        length = np.maximum(np.hypot(*away.T), 1e-9)
        jacobian = np.column_stack([-away / length[:, None], -np.ones(len(points))])
        step = np.linalg.lstsq(jacobian, -(length - radius), rcond=None)[0]
        centre, radius = centre + step[:2], radius + float(step[2])
    away = points - centre
    length = np.maximum(np.hypot(*away.T), 1e-9)
    jacobian = np.column_stack([-away / length[:, None], -np.ones(len(points))])
    noise = max(float(np.sqrt(((length - radius) ** 2).sum() / max(len(points) - 3, 1))), LEAST_NOISE)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)[:2, :2]
    return centre, radius, noise * math.sqrt(float(np.linalg.eigvalsh(covariance).max()))


def _ellipse(points: Points) -> _Round | None:
    """The ellipse that the outer points lie on, by direct least squares (Halir & Flusser 1998) in rounds without outliers."""
    middle = _middle(points)
    reach = np.hypot(*(points - middle).T)
    on = reach > 0.5 * reach.max()
    found: tuple[Points, Points] | None = None
    for _ in range(6):
        if on.sum() < ELLIPSE_FRAMES:
            return None
        found = _conic(points[on] - middle)
        if found is None:
            return None
        centre, form = found
        away = points - middle - centre
        radii = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", away, form, away), 0))
        on = np.abs(radii - 1) <= ON_CIRCLE
    if found is None or on.sum() < max(ELLIPSE_FRAMES, CIRCLE_SHARE * len(points)):
        return None
    centre, form = found
    axes = 1 / np.sqrt(np.linalg.eigvalsh(form))[::-1]
    radius = float(np.sqrt(axes.prod()))
    angles = np.sort(np.arctan2(*(points - middle - centre)[on].T))
    gap = float(np.diff(np.append(angles, angles[0] + 2 * np.pi)).max())
    if axes[0] < LEAST_AXIS_RATIO * axes[1] or axes[1] > RADIUS[1] or axes[0] < RADIUS[0] or gap > np.pi / 2:
        return None
    noise = max(radius * float(np.sqrt(((radii[on] - 1) ** 2).mean())), LEAST_NOISE)
    return float(on.mean()), middle + centre, radius, 2 * noise / math.sqrt(float(on.sum())), radii


def _conic(points: Points) -> tuple[Points, Points] | None:
    """Centre and form M of the ellipse (p - c)^T M (p - c) = 1; None where the best conic is none."""
    x, y = points.T
    quadratic, linear = np.column_stack([x * x, x * y, y * y]), np.column_stack([x, y, np.ones(len(x))])
    try:
        back = -np.linalg.solve(linear.T @ linear, linear.T @ quadratic)
        reduced = quadratic.T @ quadratic + quadratic.T @ linear @ back
        constrained = np.vstack([reduced[2] / 2, -reduced[1], reduced[0] / 2])
        _, vectors = np.linalg.eig(constrained)
        vectors = vectors.real
        chosen = vectors[:, 4 * vectors[0] * vectors[2] - vectors[1] ** 2 > 0]
        if not chosen.size:
            return None
        a, b, c = chosen[:, 0]
        d, e, f = back @ chosen[:, 0]
        form = np.array([[a, b / 2], [b / 2, c]])
        centre = np.linalg.solve(-2 * form, np.array([d, e]))
        level = float(centre @ form @ centre) - f
        if level == 0:
            return None
        form = form / level
        return (centre, form) if np.linalg.eigvalsh(form).min() > 0 else None
    except np.linalg.LinAlgError:
        return None


# --- discs -----------------------------------------------------------------------------------------


def _middle(points: Points) -> Points:
    """The middle of the points' widths in all directions: the centre of what is alike on opposite sides, a line included."""
    angles = np.arange(36) * np.pi / 36
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    along = points @ directions.T
    middle: Points = np.linalg.lstsq(directions, (along.max(0) + along.min(0)) / 2, rcond=None)[0]
    return middle


def _disc(points: Points, frames: NDArray[np.intp]) -> Pattern | None:
    """A filled pattern. A spiral's first or last frame is its centre; else a frame must be near the middle of them all."""
    if len(points) < DISC_FRAMES:
        return None
    middle = _middle(points)
    away = np.hypot(*(points - middle).T)
    radius = float(away.max())
    if not RADIUS[0] <= radius <= RADIUS[1]:
        return None
    away = away / radius
    ends = [i for i in (0, len(points) - 1) if away[i] <= DISC_CENTRAL]
    near = [int(i) for i in np.argsort(away, kind="stable") if away[i] <= DISC_NEAR and i not in ends]
    mirror = np.array([np.hypot(*(points - (2 * middle - p)).T).min() for p in points]) / radius
    alike = mirror <= MIRRORED
    noise = max(float(np.sqrt((mirror[alike] ** 2).mean())) * radius, LEAST_NOISE) if alike.any() else radius
    # Without a centre of symmetry the middle of the widths is only somewhere near the axis.
    known = noise / math.sqrt(len(points)) if alike.mean() >= MIRRORED_SHARE else DISC_CENTRAL * radius
    return Pattern(_pair(middle), radius, known, tuple(int(frames[i]) for i in [*ends, *near]), DISC_CENTRAL)
