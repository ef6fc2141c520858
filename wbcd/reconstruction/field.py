"""Off-axis holograms -> complex fields over the illumination.

Demodulated frames (:mod:`wbcd.reconstruction.demodulation`) over the demodulated sample-free frames: the division cancels the
tilt and the fractional carrier together.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.errors import BadField, ReconstructionError
from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.reconstruction.background import remove_background
from wbcd.reconstruction.demodulation import SESSIONS, Demodulator
from wbcd.reconstruction.fringes import STACK_ACTION, check_stack, find_axis, lit_frames, measure_fringes, measure_vectors
from wbcd.reconstruction.unwrap import unwrap
from wbcd.records import FieldStack, FringeReport, HologramStack, Optics

ALGORITHM_VERSION = ALGORITHMS["fields"]
"""Of the fields (field, demodulation, unwrap, background). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

AXIS_WITHIN = 0.1
"""Share of the NA by which a file's vectors may place the axis beside the fringes' own; farther off, they are other vectors."""


def retrieve_fields(
    stack: HologramStack, recipe: Recipe, *, fringes: FringeReport | None = None, device: str = "cpu"
) -> FieldStack:
    """Complex fields w = u / u_illumination of a hologram stack at the recipe's lateral pitch.

    ``fringes``: what :func:`measure_fringes` said of the same stack, where it was asked before; else it is asked here.

    Frames without signal (lost, all of one value) and those that the camera saturated are dropped and named by ``kept``;
    whether enough remain is the verdict's to say. Where the normal frame is among them, or none is lit along the axis, the one
    nearest to it stands in. Where the axis lies is taken from ``fringes``.
    Raises ReconstructionError when no frame holds fringes, BadField when the pixels would not be square, and for a reference,
    vectors, a normal frame or ``fringes`` that do not belong to the holograms.
    """
    if fringes is None:
        fringes = measure_fringes(stack)
    else:
        check_stack(stack)
        if len(fringes.contrast) != len(stack.holograms):
            raise BadField(
                f"fringes: a report of {len(fringes.contrast)} frames; it must be of the stack's {len(stack.holograms)}.",
                action=STACK_ACTION,
            )
    axis = fringes.axis or find_axis(stack)
    usable = (fringes.contrast > 1e-3) & lit_frames(stack.holograms) & ~_overexposed(fringes, recipe)
    if stack.reference is not None:
        session = SESSIONS.of(stack, axis, recipe, device)
        kept = _demand_any(usable & session.lit, fringes)
        demodulator, measured, clear = session.demodulator, session.k_in_rad_um[kept], session.clear[kept]
        whole = len(kept) == len(session.inverse)
        w = demodulator(stack.holograms if whole else stack.holograms[kept])
        w.mul_(session.inverse if whole else session.inverse[torch.from_numpy(kept)])
    else:
        kept = _demand_any(usable, fringes)
        carrier, k_all, clear_all = measure_vectors(stack.holograms, stack.optics, axis.normal_frame, axis.carrier_cycles_um)
        measured, clear = k_all[kept], clear_all[kept]
        demodulator = Demodulator(stack.optics, stack.holograms.shape[1:], carrier, recipe, device)
        w = _remove_tilt(demodulator(stack.holograms[kept]), measured, carrier, demodulator)
    normal = _normal(kept, axis.normal_frame, measured)
    w, rms = remove_background(w, polynomial=stack.reference is None)
    delay = _delay(w[normal])
    if delay < 0:
        # The other sideband was found: its field is the complex conjugate, its vectors point the other way.
        w = w.conj().resolve_conj()
        measured = -measured
    given = None if stack.illumination_rad_um is None else np.asarray(stack.illumination_rad_um, np.float64)[kept]
    misfit = None
    if given is not None:
        at_normal = normal if kept[normal] == axis.normal_frame else None
        rim = _rim(stack.optics)
        misfit = _misfit(given, measured, clear, at_normal, signed=delay != 0, axis_within=AXIS_WITHIN * rim) / rim
    return FieldStack(
        w=w.cpu().numpy(),
        k_in_rad_um=measured if given is None else given,
        pixel_um=demodulator.pitch_um,
        normal_frame=normal,
        optics=stack.optics,
        fringes=fringes,
        kept=kept,
        background_rms_rad=rms.double().cpu().numpy(),
        measured_rad_um=measured,
        illumination_misfit=misfit,
    )


def _rim(optics: Optics) -> float:
    """NA k0, rad/um."""
    return 2 * math.pi * optics.objective_na / optics.wavelength_um


def _misfit(
    given: NDArray[np.float64],
    measured: NDArray[np.float64],
    clear: NDArray[np.bool_],
    normal: int | None,
    *,
    signed: bool,
    axis_within: float,
) -> float:
    """Rms distance of the given vectors [frame, 2] from the measured ones over the ``clear`` frames; NaN without any.

    The peaks show directions relative to the normal frame's (to their circle's centre where that is lost: ``normal`` None);
    where exactly the axis lies is the file's to say, but not farther than ``axis_within`` (rad/um) from where they show it.
    ``signed`` False: nothing in the field tells the sideband from its conjugate.
    """

    def apart(sign: int) -> float:
        away = given - sign * measured
        common = away[normal] if normal is not None else away[clear].mean(0)
        if math.hypot(*common) <= axis_within:
            away = away - common
        return math.sqrt(float((away[clear] ** 2).sum(1).mean()))

    if not clear.any():
        return math.nan
    return apart(1) if signed else min(apart(1), apart(-1))


def _overexposed(fringes: FringeReport, recipe: Recipe) -> NDArray[np.bool_]:
    """True [frame] where single frames are saturated; where many are, none is dropped: the verdict has its word for that."""
    over: NDArray[np.bool_] = fringes.saturated_fraction > recipe.quality.max_saturated_fraction
    return over if over.mean() <= recipe.quality.max_lost_frames else np.zeros_like(over)


def _demand_any(usable: NDArray[np.bool_], fringes: FringeReport) -> NDArray[np.intp]:
    kept = np.flatnonzero(usable)
    if not kept.size:
        raise ReconstructionError(
            f"holograms: none of {len(usable)} frames holds fringes (the greatest contrast is "
            f"{fringes.contrast.max(initial=0.0):.2g}; more than 0.001 is needed)."
        )
    return kept


def _normal(kept: NDArray[np.intp], normal_frame: int | None, k_in: NDArray[np.float64]) -> int:
    """Position of the normal frame among the kept ones, or of the one nearest to the axis."""
    found = np.flatnonzero(kept == (-1 if normal_frame is None else normal_frame))
    return int(found[0]) if found.size else int(np.argmin(np.hypot(k_in[:, 0], k_in[:, 1])))


def _remove_tilt(u: Tensor, k_in: NDArray[np.float64], carrier: tuple[float, float], demodulator: Demodulator) -> Tensor:
    """Without a reference: take out the plane wave that the fringe peak names; the rest is the background fit's."""
    ny, nx = u.shape[-2:]
    y = torch.arange(ny, device=u.device) * demodulator.pitch_um
    x = torch.arange(nx, device=u.device) * demodulator.pitch_um
    k = k_in + 2 * np.pi * np.asarray(carrier) - np.asarray(demodulator.shift_rad_um)
    kx = torch.from_numpy(k[:, 0]).float().to(u.device)
    ky = torch.from_numpy(k[:, 1]).float().to(u.device)
    phase = kx[:, None, None] * x[None, None, :] + ky[:, None, None] * y[None, :, None]
    return u * torch.polar(torch.ones_like(phase), -phase)


def _delay(w: Tensor) -> float:
    """Summed phase of the object in one frame, 0 where there is none to speak of.

    Cells are denser than the medium, so it must be positive: a negative one is that of the conjugate sideband.
    """
    phase = unwrap(torch.angle(w)[None])
    strong = phase[phase.abs() > 0.5]
    return float(strong.sum()) if strong.numel() > 50 else 0.0
