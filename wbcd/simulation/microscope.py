"""The simulated instrument: an off-axis Mach-Zehnder with illumination scanning, and the files that it writes.

One session shares its alignment: carrier, illumination circle, uneven light, aberrations, dust; and one sample-free reference
file. Every file of a session follows from (seed, index) alone, so a run can be cut short, resumed or lengthened without
changing one byte of the files it shares with another run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.errors import BadValue
from wbcd.records import HologramStack, Optics, Shape3, Triple
from wbcd.simulation.cells import CLASSES, Phantom, canonical_shape, measure_truth, render, sample_phantom
from wbcd.simulation.defects import Defect, draw_defect, planned_defect
from wbcd.simulation.files import (
    MAT_NORMAL,
    REFERENCE_SUFFIX,
    write_acquisition,
    write_mat,
    write_reference,
    write_tcf,
    write_tiff_pair,
)
from wbcd.simulation.optics import CAMERA, ILLUMINATION_NA, INSTRUMENT, RING, illumination, record, scatter

RENDER_UM: Triple = (0.1, 0.1, 0.1)
INSTRUMENT_ID = "wbcd-simulator"
EPOCH = datetime(2024, 1, 1, 8, 0, tzinfo=UTC)
INTERVAL_S = 5.0
TCF_SHAPE: Shape3 = (100, 150, 150)
TCF_WIDE: Shape3 = (100, 240, 240)
_SUFFIXES: Mapping[str, str] = {"hologram": ".h5", "tcf": ".TCF", "tiff": "_sp.tif", "mat": "_Tomog.mat"}
EQUAL_MIX: Mapping[str, float] = dict.fromkeys(CLASSES, 0.25)
_SESSION, _REFERENCE = 7_001, 7_002

Bits = Literal[8, 12]
Format = Literal["hologram", "tcf", "tiff", "mat"]
FORMATS: tuple[Format, ...] = ("hologram", "tcf", "tiff", "mat")


@dataclass(frozen=True, slots=True)
class Camera:
    """``level``: brightest fringe of the empty field over full scale; ``full_well`` electrons at full scale."""

    shape: tuple[int, int] = CAMERA
    bits: Bits = 8
    full_well: float = 10_000.0
    read_noise: float = 8.0
    level: float = 0.62
    visibility: float = 0.9


@dataclass(frozen=True, slots=True)
class Specimen:
    """Something in the field of view: RI float32 [z, y, x].

    Its middle voxel lies at ``centre_um`` (z, y, x) from the middle of the focal plane.
    ``path_um`` [frame, 3]: displacement (z, y, x) during the scan, or None for an object at rest.
    """

    ri: NDArray[np.float32]
    voxel_um: Triple
    centre_um: Triple = (0.0, 0.0, 0.0)
    path_um: NDArray[np.float64] | None = None


def rendered(phantom: Phantom, centre_um: Triple, margin_um: float = 0.5) -> Specimen:
    """The phantom's middle at ``centre_um`` (z, y, x), at :data:`RENDER_UM`, with ``margin_um`` of medium around it."""
    shape = canonical_shape(phantom, RENDER_UM, margin_um)
    return Specimen(render(phantom, RENDER_UM, shape), RENDER_UM, centre_um)


@dataclass(frozen=True, slots=True)
class Exposure:
    """How one stack departs from the session's alignment.

    Phase [frame] in rad, tilt [frame, 2] (x, y) in rad across the field, light [frame]; factors on visibility and light.
    """

    phase_rad: NDArray[np.float64]
    tilt_rad: NDArray[np.float64]
    light: NDArray[np.float64]
    visibility: float = 1.0
    gain: float = 1.0


class Microscope:
    """One session of the simulated instrument.

    ``reference`` uint8 or uint16 [frame, y, x]: sample-free frames, made on first use and kept.
    """

    def __init__(self, seed: int, *, optics: Optics = INSTRUMENT, camera: Camera | None = None, frames: int = 49) -> None:
        self.seed = seed
        self.optics = optics
        self.camera = camera or Camera()
        rng = np.random.default_rng([seed, _SESSION])
        self.carrier_cycles_um = _carrier(optics, rng)
        na = min(ILLUMINATION_NA, RING * optics.objective_na)
        self.k_in_rad_um = illumination(optics, na=na, frames=frames, start_rad=float(rng.uniform(0, 2 * math.pi)))
        self._arm = _sample_arm(self.camera.shape, optics.pixel_size_um, rng)
        self._beam = _beam(self.camera.shape, rng)
        self._reference: NDArray[np.unsignedinteger[Any]] | None = None

    @property
    def reference(self) -> NDArray[np.unsignedinteger[Any]]:
        """Sample-free frames of the session."""
        if self._reference is None:
            rng = np.random.default_rng([self.seed, _REFERENCE])
            frames = len(self.k_in_rad_um)
            still = Exposure(rng.uniform(-math.pi, math.pi, frames), np.zeros((frames, 2)), np.ones(frames))
            self._reference = self.expose(None, still, rng)
        return self._reference

    def fields(self, specimens: Sequence[Specimen], *, device: str = "cpu") -> Tensor:
        """Total field over the illumination, complex64 [frame, y, x] at the camera; specimens do not shade one another."""
        w = torch.ones((len(self.k_in_rad_um), *self.camera.shape), dtype=torch.complex64, device=device)
        for specimen in specimens:
            scattered = scatter(specimen.ri, specimen.voxel_um, self.optics, self.k_in_rad_um, device=device)
            centre = np.asarray(specimen.centre_um) + (0.0 if specimen.path_um is None else specimen.path_um)
            record(scattered, w, centre)
        return w

    def exposure(self, rng: np.random.Generator) -> Exposure:
        """Drift since the reference was taken: a slow random walk of phase and light, and a slight tilt."""
        frames = len(self.k_in_rad_um)
        walk = np.cumsum(rng.standard_normal(frames)) * 0.05 + rng.normal(0, 0.6)
        tilt = np.tile(rng.normal(0, 0.05, 2), (frames, 1)) + rng.normal(0, 0.005, (frames, 2))
        light = 1 + rng.normal(0, 0.015) + 0.004 * np.cumsum(rng.standard_normal(frames)) / math.sqrt(frames)
        return Exposure(walk, tilt, light)

    def expose(self, w: Tensor | None, exposure: Exposure, rng: np.random.Generator) -> NDArray[np.unsignedinteger[Any]]:
        """Camera frames |u + r|^2 of fields ``w`` [frame, y, x] (None: the empty field), with shot and read noise.

        Shot noise is normal with the variance of the count: at 10,000 electrons indistinguishable from Poisson's.
        """
        camera = self.camera
        top = 2**camera.bits - 1
        frames = np.empty((len(self.k_in_rad_um), *camera.shape), np.uint8 if camera.bits == 8 else np.uint16)
        for i in range(len(frames)):
            field_of_view = self._arm * self._tilted(i, exposure)
            if w is not None:
                field_of_view = field_of_view * w[i]
            counts = self._intensity(field_of_view, exposure, i).numpy() * np.float32(camera.full_well)
            noise = rng.standard_normal(counts.shape, dtype=np.float32)
            counts += noise * np.sqrt(np.maximum(counts, 0) + np.float32(camera.read_noise**2))
            frames[i] = np.clip(np.rint(counts * np.float32(top / camera.full_well)), 0, top)
        return frames

    def _tilted(self, frame: int, exposure: Exposure) -> Tensor:
        """exp(i (k_in + carrier) r) of one frame [y, x]."""
        waves = []
        for axis, n in ((1, self.camera.shape[0]), (0, self.camera.shape[1])):
            k = self.k_in_rad_um[frame, axis] + 2 * math.pi * self.carrier_cycles_um[axis]
            along = np.arange(n) * self.optics.pixel_size_um
            tilt = exposure.tilt_rad[frame, axis] * (np.arange(n) / n - 0.5)
            waves.append(torch.from_numpy(np.exp(1j * (k * along + tilt)).astype(np.complex64)))
        turned = complex(np.exp(1j * exposure.phase_rad[frame]))
        return (waves[0] * turned)[:, None] * waves[1][None, :]

    def _intensity(self, sample: Tensor, exposure: Exposure, frame: int) -> Tensor:
        """Share of full scale: (|u|^2 + |r|^2 + 2 V Re(u r*)) / 4 times the level."""
        bright = sample.abs().square() + self._beam.square()
        fringes = 2 * self.camera.visibility * exposure.visibility * sample.real * self._beam
        scale = 0.25 * self.camera.level * exposure.gain * float(exposure.light[frame])
        return (bright + fringes) * scale

    def acquire(
        self, specimens: Sequence[Specimen], rng: np.random.Generator, *, exposure: Exposure | None = None, device: str = "cpu"
    ) -> HologramStack:
        """Holograms of the specimens with the session's reference; illumination vectors are left to be measured."""
        w = self.fields(specimens, device=device).cpu()
        return self.stack(self.expose(w, exposure or self.exposure(rng), rng))

    def stack(self, frames: NDArray[np.unsignedinteger[Any]]) -> HologramStack:
        """Frames as a stack of this session."""
        return HologramStack(frames, self.reference, None, 0, self.optics)


def _carrier(optics: Optics, rng: np.random.Generator) -> tuple[float, float]:
    """(f_x, f_y) on the diagonal, just beyond 3 NA/lambda so that the sideband is free of the zero order."""
    diagonal = 3.135 * optics.objective_na / optics.wavelength_um / math.sqrt(2)
    fx, fy = diagonal + rng.uniform(-0.06, 0.06, 2)
    return float(fx), float(fy)


def _sample_arm(shape: tuple[int, int], pixel_um: float, rng: np.random.Generator) -> Tensor:
    """Complex field of the empty sample arm [y, x]: uneven light, slow aberrations, dust and its rings."""
    y, x = _unit_axes(shape)
    aberration = sum(rng.normal(0, 0.4) * term for term in (x * y, x**2, y**2, x**3, y**3, x**2 * y))
    amplitude = np.exp(-0.35 * ((x - rng.uniform(-0.4, 0.4)) ** 2 + (y - rng.uniform(-0.4, 0.4)) ** 2))
    arm = amplitude * np.exp(1j * aberration)
    for _ in range(int(rng.integers(3, 8))):
        arm = arm * _dust(shape, pixel_um, rng)
    return torch.from_numpy(np.asarray(arm, np.complex64))


def _dust(shape: tuple[int, int], pixel_um: float, rng: np.random.Generator) -> NDArray[np.complex128]:
    """A speck out of focus on some window of the sample arm: a disc with a few rings, weak."""
    y, x = (np.arange(n) * pixel_um for n in shape)
    cy, cx = (rng.uniform(0, n * pixel_um) for n in shape)
    r2 = (y[:, None] - cy) ** 2 + (x[None, :] - cx) ** 2
    width = rng.uniform(0.8, 2.5)
    rings = np.cos(r2 / rng.uniform(0.5, 1.5)) * np.exp(-r2 / (2 * width**2))
    speck: NDArray[np.complex128] = 1 - rng.uniform(0.03, 0.15) * rings * np.exp(1j * rng.uniform(-0.5, 0.5))
    return speck


def _beam(shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Amplitude of the reference beam [y, x]: an expanded Gaussian, nearly flat."""
    y, x = _unit_axes(shape)
    flat = np.exp(-0.15 * ((x - rng.uniform(-0.2, 0.2)) ** 2 + (y - rng.uniform(-0.2, 0.2)) ** 2))
    return torch.from_numpy(flat.astype(np.float32))


def _unit_axes(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = (np.linspace(-1, 1, n) for n in shape)
    return y[:, None], x[None, :]


# --- one acquisition -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What file ``index`` of a session shows: at most one phantom at its place (z, y, x), and the defect if any."""

    index: int
    phantoms: tuple[tuple[Phantom, Triple], ...]
    defect: Defect | None


@dataclass(frozen=True, slots=True)
class Progress:
    """One file written: its path, its truth (a JSON object, see :func:`simulate`), and whether it was there already."""

    path: Path
    truth: Mapping[str, Any]
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What to write: see :func:`simulate`."""

    seed: int
    format: Format = "hologram"
    defects: float = 0.0
    sample: str = "simulated"
    mix: Mapping[str, float] = field(default_factory=lambda: EQUAL_MIX)
    bits: Bits = 8


def plan(order: Order, index: int, rng: np.random.Generator, optics: Optics = INSTRUMENT) -> Plan:
    """Draw the content of file ``index``: a class by the mix, or what the defect puts in its place; pure."""
    kinds = list(order.mix)
    weights = np.array([order.mix[kind] for kind in kinds], float)
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    name = planned_defect(order.defects, index, order.format)
    defect = draw_defect(name, rng) if name else None
    if defect is not None and defect.replaces is not None:
        kind = defect.replaces
    phantom = sample_phantom(kind, rng, medium_ri=optics.medium_ri)
    holograms = order.format != "tcf"
    # A reconstructed volume is cut around its cell; in the hologram's field a cell lies where it lies.
    y, x = (float(v) for v in rng.uniform(-1, 1, 2) * (2.5 if holograms else 0.3))
    place: Triple = (float(np.clip(rng.normal(0, 0.8), -2, 2)) if holograms else 0.0, y, x)
    if defect is not None:
        half_um = CAMERA[0] * optics.pixel_size_um / 2 if holograms else TCF_WIDE[1] * 0.1 / 2
        place = defect.place(place, half_um, phantom.radius_um, rng)
    return Plan(index, ((phantom, place),) if kind != "empty" else (), defect)


def simulate(
    out: Path,
    cells: int,
    seed: int,
    rate: float | None = None,
    format: Format = "hologram",
    defects: float = 0.0,
    sample: str = "simulated",
    truth: Path | None = None,
    *,
    mix: Mapping[str, float] | None = None,
    bits: Bits = 8,
    start: int = 0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Progress]:
    """Write acquisitions ``start`` .. ``start + cells - 1`` of session ``seed`` into folder ``out``; yields each as it is done.

    ``rate``: files a second at most (None: as fast as they are made). ``defects``: share of defective files, the kinds in
    turn. ``mix``: weight of each class. ``truth``: JSON lines, by default beside the folder (``<out>.truth.jsonl``), never in
    it; one object a file: path, index, seed, sample, kind, label (None for what is no single cell), defect, strength, cells
    (the six values each). A file that exists with its truth is not made again. Raises BadValue for an argument out of range.
    """
    order = Order(seed, format, defects, sample, dict(mix or EQUAL_MIX), bits)
    sidecar = truth if truth is not None else out.with_name(out.name + ".truth.jsonl")
    _check(order, cells, rate, out, sidecar)
    return _write_all(_Session(order, out), sidecar, range(start, start + cells), rate, clock, sleep)


def _check(order: Order, cells: int, rate: float | None, out: Path, sidecar: Path) -> None:
    if order.format not in FORMATS:
        raise BadValue(f"format is {order.format!r}; it must be one of {', '.join(FORMATS)}.")
    if not 0 <= order.defects <= 1:
        raise BadValue(f"defects is {order.defects}; it must lie between 0 and 1.")
    if cells < 0:
        raise BadValue(f"cells is {cells}; it must be 0 or more.")
    if rate is not None and rate <= 0:
        raise BadValue(f"rate is {rate}; it must be above 0 files a second.")
    unknown = sorted(set(order.mix) - set(CLASSES))
    if unknown or not order.mix or min(order.mix.values()) < 0 or sum(order.mix.values()) <= 0:
        raise BadValue(f"mix is {dict(order.mix)}; it must weigh some of {', '.join(CLASSES)}.")
    if sidecar.parent.resolve() == out.resolve():
        raise BadValue(f"truth is {sidecar}; it must lie outside the watched folder {out}.")


def _write_all(
    session: _Session,
    sidecar: Path,
    indices: Sequence[int],
    rate: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Progress]:
    known = _read_truth(sidecar)
    session.out.mkdir(parents=True, exist_ok=True)
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    due = clock()
    with sidecar.open("a", encoding="utf-8") as lines:
        for index in indices:
            path = session.path(index)
            if path.exists() and path.name in known:
                yield Progress(path, known[path.name], resumed=True)
                continue
            if rate is not None:
                sleep(max(0.0, due - clock()))
                due = max(due + 1 / rate, clock())
            truth = session.write(index)
            lines.write(json.dumps(truth, sort_keys=True) + "\n")
            lines.flush()
            yield Progress(path, truth)


def _read_truth(sidecar: Path) -> dict[str, Mapping[str, Any]]:
    """Truth of files already made, by name; a last line cut short by a crash is dropped."""
    known: dict[str, Mapping[str, Any]] = {}
    if sidecar.is_file():
        for line in sidecar.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            known[Path(entry["path"]).name] = entry
    return known


class _Session:
    """Writes single files of an order."""

    def __init__(self, order: Order, out: Path) -> None:
        self.order = order
        self.out = out
        self._microscope: Microscope | None = None

    def path(self, index: int) -> Path:
        return self.out / f"{self._name(index)}{_SUFFIXES[self.order.format]}"

    def write(self, index: int) -> dict[str, Any]:
        """Make file ``index`` and return its truth."""
        rng = np.random.default_rng([self.order.seed, index])
        content = plan(self.order, index, rng)
        objects = [_Object(phantom, place) for phantom, place in content.phantoms]
        if self.order.format == "tcf":
            self._write_tcf(content, rng)
        else:
            self._write_holograms(content, objects, rng)
        return self._truth(content, objects)

    @property
    def microscope(self) -> Microscope:
        if self._microscope is None:
            self._microscope = Microscope(self.order.seed, camera=Camera(bits=self.order.bits))
        return self._microscope

    def _write_holograms(self, content: Plan, objects: Sequence[_Object], rng: np.random.Generator) -> None:
        frames = self._frames(content.defect, objects, rng)
        optics, reference = self.microscope.optics, self.microscope.reference
        if self.order.format == "tiff":
            stack = HologramStack(frames, reference, None, 0, optics)
            write_tiff_pair(
                self.out,
                self._name(content.index),
                stack,
                own_background=False,
                sample_id=self.order.sample,
                instrument_id=INSTRUMENT_ID,
                acquired_at=self._time(content.index).isoformat(),
            )
            return
        if self.order.format == "mat":
            background = self.out / "bg001_Tomog.mat"
            if not background.exists():
                write_mat(background, _normal_last(reference), optics)
            acquired_at = self._time(content.index).strftime("%Y-%m-%d %H:%M:%S")
            write_mat(self.path(content.index), _normal_last(frames), optics, acquired_at=acquired_at)
            return
        write_acquisition(
            self.path(content.index),
            HologramStack(frames, None, None, 0, optics),
            acquisition_id=self._name(content.index),
            acquired_at=self._time(content.index).isoformat(),
            sample_id=self.order.sample,
            instrument_id=INSTRUMENT_ID,
            reference_file=self._reference(),
        )

    def _frames(
        self, defect: Defect | None, objects: Sequence[_Object], rng: np.random.Generator
    ) -> NDArray[np.unsignedinteger[Any]]:
        """The camera's frames, each step disturbed by the defect where it is one of that step."""
        microscope = self.microscope
        exposure = microscope.exposure(rng)
        specimens = [o.specimen for o in objects]
        if defect is None:
            return microscope.expose(microscope.fields(specimens), exposure, rng)
        count = len(microscope.k_in_rad_um)
        w = microscope.fields([replace(s, path_um=defect.path(count, rng)) for s in specimens])
        defect.disturb(w, microscope.optics.pixel_size_um, rng)
        frames = microscope.expose(w, replace(exposure, visibility=defect.visibility, gain=defect.gain), rng)
        defect.spoil(frames, rng)
        return frames

    def _reference(self) -> str:
        """Name of the session's reference file, written when it is not there."""
        path = self.out / f"session-{self.order.seed}-{self.order.bits}bit{REFERENCE_SUFFIX}"
        if not path.exists():
            write_reference(path, self.microscope.reference)
        return path.name

    def _write_tcf(self, content: Plan, rng: np.random.Generator) -> None:
        from wbcd.simulation.fast import FastOptics

        # Room for what is no single centred cell: two of them, or one at the edge.
        wide = content.defect is not None and content.defect.name in ("border", "doublet")
        fast = replace(FastOptics(), shape=TCF_WIDE if wide else TCF_SHAPE)
        found = [fast.phantom(phantom, rng, offset_um=place) for phantom, place in content.phantoms]
        if not found:
            found = [fast.tomogram(np.full(fast.shape, fast.optics.medium_ri, np.float32), rng)]
        write_tcf(
            self.path(content.index),
            [found[0].ri],
            voxel_um=fast.voxel_um,
            medium_ri=fast.optics.medium_ri,
            title=f"{self.order.sample}-{content.index:03d}",  # as the vendor numbers: without it, the sample
            acquired_at=self._time(content.index).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
            unique_id=self._name(content.index),
        )

    def _name(self, index: int) -> str:
        return f"{self.order.sample}-{self.order.seed}-{index:05d}"

    def _time(self, index: int) -> datetime:
        return EPOCH + timedelta(days=self.order.seed % 365, seconds=INTERVAL_S * index)

    def _truth(self, content: Plan, objects: Sequence[_Object]) -> dict[str, Any]:
        kind = content.phantoms[0][0].kind if content.phantoms else "empty"
        return {
            "path": str(self.path(content.index)),
            "index": content.index,
            "seed": self.order.seed,
            "sample": self.order.sample,
            "kind": kind,
            "label": kind if kind in CLASSES else None,
            "defect": content.defect.name if content.defect else None,
            "strength": content.defect.strength if content.defect else None,
            "cells": [cell for o in objects for cell in o.truth()],
        }


def _normal_last(frames: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    """The circle first and the normal frame 49th, as such rigs scan."""
    order = [*range(1, MAT_NORMAL + 1), 0, *range(MAT_NORMAL + 1, len(frames))]
    return np.ascontiguousarray(frames[order])


class _Object:
    """A phantom at its place, rendered once for the optics and for the truth."""

    def __init__(self, phantom: Phantom, place_um: Triple) -> None:
        self._phantom = phantom
        self._place = place_um

    @cached_property
    def specimen(self) -> Specimen:
        return rendered(self._phantom, self._place, margin_um=0.3)

    def truth(self) -> list[dict[str, Any]]:
        """The six values of each single body, with its centre (z, y, x)."""
        if not self._phantom.parts:
            values = measure_truth(self._phantom, self.specimen.ri, RENDER_UM)
            return [{**asdict(values), "centre_um": list(self._place)}]
        return [
            {**asdict(measure_truth(part)), "centre_um": [a + b for a, b in zip(self._place, shift, strict=True)]}
            for part, shift in self._phantom.parts
        ]
