"""`make bench-reconstruction`: the reconstruction against exact scattering, and against what others do.

Random exact phantoms (tests/helpers_phantoms.py) go through holograms, fields and inversion. Every phantom's figures are
appended to a file of the output folder as they come, so a broken-off run goes on where it stopped. Prints a table, writes
it as Markdown and two plots: profiles through one sphere, and error against the number of 3-D transforms. The timings are
taken in the same run: our field retrieval beside qpretrieve's, our fast mode beside a plain NumPy Gerchberg-Papoulis of 50
iterations on the same grid.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from helpers_phantoms import FIT_SEED, MEDIUM_RI, Phantom, judge, random_phantom
from numpy.typing import NDArray

from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import invert, measure_fringes, reconstruct, retrieve_fields, rytov_to_ri
from wbcd.reconstruction.operator import EwaldOperator
from wbcd.reconstruction.spectrum import RytovStack, locate, rytov, wave_numbers
from wbcd.records import FieldStack, HologramStack, Tomogram
from wbcd.training.make import prepare_worker

Task: TypeAlias = tuple[int, int, list[str]]
"""Number of a phantom, seed, modes asked for."""

BEGIN, END = "<!-- bench-reconstruction -->", "<!-- /bench-reconstruction -->"
BARS = {
    "fast": {"ri": (1.0, 4.0), "volume": (5.0, 10.0), "mass": (2.0, 6.0), "elongation": (0.97, 1.03), "seconds": 1.5},
    "accurate": {"ri": (0.4, 1.5), "volume": (1.5, 4.0), "mass": (1.0, 3.0), "elongation": (0.985, 1.015), "seconds": 60.0},
}


def recipe_of(mode: str) -> Recipe:
    recipe = Recipe()
    return replace(recipe, reconstruction=replace(recipe.reconstruction, mode=mode))


def measured(number: int, phantom: Phantom, stack: HologramStack, mode: str) -> dict[str, Any]:
    """Errors of one phantom in per cent, what its rows in the database would say, and seconds from frames to RI."""
    recipe = recipe_of(mode)
    started = time.perf_counter()
    (tomogram,) = reconstruct(retrieve_fields(stack, recipe, fringes=measure_fringes(stack)), recipe)
    seconds = time.perf_counter() - started
    sphere = phantom.sphere
    found = [measure(cell, recipe) for cell in find_cells(tomogram, recipe)]
    rows = max(found, key=lambda cell: cell.volume_fl)
    errors = asdict(judge(tomogram, sphere))
    report = tomogram.report
    assert report is not None
    volume, mass = sphere.volume_fl, sphere.mass_pg(MEDIUM_RI)
    uncertain = {
        "volume": (rows.volume_half_contrast_fl - volume) / rows.volume_uncertainty_fl,
        "mass": (rows.dry_mass_half_contrast_pg - mass) / rows.dry_mass_uncertainty_pg,
        "ri": (rows.mean_ri_half_contrast(recipe.morphology.ri_increment_ml_g, MEDIUM_RI) - sphere.mean_ri(MEDIUM_RI))
        / rows.mean_ri_uncertainty,
    }
    return {
        "number": number,
        "radius_um": sphere.radii_um[-1],
        "contrast": sphere.ri[-1] - MEDIUM_RI,
        "core": len(sphere.ri) > 1,
        "electrons": phantom.electrons,
        "ri": errors["ri"],
        "elongation": errors["elongation"],
        "z_um": errors["z_um"],
        "focus_um": report.focus_um - sphere.centre_um[2],
        "surface_volume": errors["volume"],
        "masked_mass": errors["mass"],
        "fragments": len(found) - 1,
        "volume": 100 * (rows.volume_half_contrast_fl / volume - 1),
        "mass": 100 * (rows.dry_mass_half_contrast_pg / mass - 1),
        "volume_at_135": 100 * (rows.volume_fl / volume - 1),
        "mass_at_135": 100 * (rows.dry_mass_pg / mass - 1),
        "held_out_residual": report.held_out_residual,
        "refinement": asdict(report.refinement) if report.refinement else None,
        "sigmas": uncertain,
        "seconds": seconds,
    }


def all_measured(out: Path, counts: dict[str, int], seed: int, workers: int = 1) -> dict[str, list[dict[str, Any]]]:
    """The figures of phantoms 0 .. count - 1 by each mode, those not in its file yet measured now.

    Several ``workers`` run one thread each and slow one another down: their seconds are no timings.
    """
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for mode in counts:
        path = out / f"{mode}-{seed}.jsonl"
        known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows[mode] = {row["number"]: row for row in known}
    todo = []
    for number in range(max(counts.values())):
        wanted = [mode for mode, count in counts.items() if number < count and number not in rows[mode]]
        if wanted:
            todo.append((number, seed, wanted))
    for found in _measured_by(todo, workers):
        for mode, row in found.items():
            rows[mode][row["number"]] = row
            with (out / f"{mode}-{seed}.jsonl").open("a") as file:
                file.write(json.dumps(row, default=float) + "\n")
            print(f"{mode} {len(rows[mode])}/{counts[mode]}  {_short(row)}", flush=True)
    return {mode: [rows[mode][number] for number in range(count)] for mode, count in counts.items()}


def _measured_by(todo: list[Task], workers: int) -> Iterator[dict[str, dict[str, Any]]]:
    if workers == 1:
        yield from map(_phantom_measured, todo)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        for done in as_completed([pool.submit(_phantom_measured, task) for task in todo]):
            yield done.result()


def _prepare() -> None:
    prepare_worker()
    torch.set_flush_denormal(True)


def _phantom_measured(task: Task) -> dict[str, dict[str, Any]]:
    number, seed, modes = task
    phantom = random_phantom(number, seed)
    stack = phantom.stack()
    return {mode: measured(number, phantom, stack, mode) for mode in modes}


def _short(row: dict[str, Any]) -> str:
    return " ".join(f"{name} {row[name]:+.2f}" for name in ("ri", "volume", "mass", "elongation", "seconds"))


JUDGED = {
    "ri": "mean RI of the core, % of dn",
    "volume": "volume (`volume_half_contrast_fl`), %",
    "mass": "dry mass (`dry_mass_half_contrast_pg`), %",
}
BESIDE = {
    "surface_volume": "... of the surface as it lies in the tomogram, %",
    "masked_mass": "... within that surface, nothing added, %",
    "volume_at_135": "volume at RI 1.35, %",
    "mass_at_135": "dry mass at RI 1.35, %",
    "focus_um": "focus against the sphere's height, um",
}


def table(mode: str, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of one mode: median and 95th percentile of the absolute errors, range, and the bar of each figure."""
    bars = BARS[mode]
    lines = [f"| {mode} mode, {len(rows)} phantoms | median | 95th percentile | bar |", "|---|---|---|---|"]
    for key, name in {**JUDGED, **BESIDE}.items():
        values = np.abs([row[key] for row in rows])
        bar = "{:g}, {:g}".format(*bars[key]) if key in JUDGED else ""
        signed = np.median([row[key] for row in rows])
        lines.append(
            f"| {name} | {np.median(values):.2f} (with its sign {signed:+.2f}) | {np.percentile(values, 95):.2f} | {bar} |"
        )
    stretch = [row["elongation"] for row in rows]
    low, high = bars["elongation"]
    within = np.mean([low <= value <= high for value in stretch])
    reach = f"{min(stretch):.3f} to {max(stretch):.3f}, {100 * within:.0f} % within"
    lines.append(f"| axial elongation | {np.median(stretch):.3f} | {reach} | {low}-{high} |")
    for key in ("ri", "volume", "mass"):
        sigmas = np.array([row["sigmas"][key] for row in rows], float)
        known = sigmas[np.isfinite(sigmas)]
        said = f"{100 * np.mean(np.abs(known) <= 1.96):.0f} % of {known.size}" if known.size else "no uncertainty is given"
        lines.append(f"| 95 % interval of the {key} covers the truth | {said} | | 90-99 % |")
    torn = sum(row.get("fragments", 0) > 0 for row in rows)
    lines.append(f"| spheres with a fragment beside them (an object of its own above RI 1.35 and 10 fL) | {torn} | | |")
    if mode == "accurate":
        kept = sum(bool(row["refinement"] and row["refinement"]["kept"]) for row in rows)
        lines.append(f"| preferred by the held-out frames to the fast mode | {kept} of {len(rows)} | | |")
    return lines


# --- the others ---------------------------------------------------------------------------------


class GriddedSpectrum:
    """What a plain implementation does: Rytov samples put on the nearest grid point and averaged."""

    def __init__(self, stack: RytovStack, shape: tuple[int, int, int], voxel_um: tuple[float, float, float]) -> None:
        k0, k = wave_numbers(stack.optics)
        nz, ny, nx = shape
        psi = stack.psi.numpy()
        ky = 2 * np.pi * np.fft.fftfreq(ny, voxel_um[1])[:, None]
        kx = 2 * np.pi * np.fft.fftfreq(nx, voxel_um[2])[None, :]
        total = np.zeros(shape, np.complex128)
        hits = np.zeros(shape)
        for (px, py), frame in zip(stack.k_in_rad_um, psi, strict=True):
            kt2 = (kx + px) ** 2 + (ky + py) ** 2
            iy, ix = np.nonzero(kt2 <= (stack.optics.objective_na * k0) ** 2)
            kz = np.sqrt(k**2 - kt2[iy, ix])
            iz = np.round((kz - np.sqrt(k**2 - px**2 - py**2)) * nz * voxel_um[0] / (2 * np.pi)).astype(int) % nz
            spectrum = np.fft.fft2(np.fft.ifftshift(frame))[iy, ix]
            np.add.at(total, (iz, iy, ix), -2j * kz * spectrum / voxel_um[0])
            np.add.at(hits, (iz, iy, ix), 1)
        mirrored = [np.roll(np.flip(part), 1, (0, 1, 2)) for part in (total, hits)]
        total, hits = total + mirrored[0].conj(), hits + mirrored[1]
        self.known = hits > 0
        self.values = np.where(self.known, total / np.maximum(hits, 1), 0)

    def volume(self) -> NDArray[np.float64]:
        """Direct inversion: what was not measured is zero."""
        return np.fft.fftshift(np.fft.ifftn(self.values).real)

    def gerchberg_papoulis(self, iterations: int) -> Iterator[NDArray[np.float64]]:
        """The volume after each iteration: non-negative, with the measured samples put back."""
        spectrum = self.values
        for _ in range(iterations):
            volume = np.maximum(np.fft.ifftn(spectrum).real, 0)
            yield np.fft.fftshift(volume)
            spectrum = np.where(self.known, self.values, np.fft.fftn(volume))


class OneSphere:
    """The sphere of the plots and of the timings: 7.5 um, contrast 0.033, centred."""

    def __init__(self) -> None:
        from helpers_mie import Sphere

        self.phantom = Phantom(Sphere((3.75,), (1.370,)), 10_000.0, 1)
        self.recipe = Recipe()
        self.holograms: HologramStack = self.phantom.stack()
        self.fields: FieldStack = retrieve_fields(self.holograms, self.recipe)
        self.rytov = rytov(self.fields, locate(self.fields, self.recipe)[0], self.recipe)
        self.shape = (self.recipe.reconstruction.shape[0], *self.rytov.psi.shape[-2:])
        self.voxel = (self.recipe.reconstruction.voxel_um[0], self.rytov.pixel_um, self.rytov.pixel_um)

    def tomogram(self, potential: NDArray[np.floating[Any]] | torch.Tensor) -> Tomogram:
        """A potential on the sphere's grid as a tomogram that can be judged."""
        ri = rytov_to_ri(torch.as_tensor(potential).float(), self.rytov.optics).numpy()
        (whole,) = reconstruct(self.fields, self.recipe)
        return replace(whole, ri=ri)


def convergence(sphere: OneSphere) -> dict[str, list[tuple[int, float, float]]]:
    """(3-D transforms, RI error, volume error) of Gerchberg-Papoulis and of ours by iterations."""
    gridded = GriddedSpectrum(sphere.rytov, sphere.shape, sphere.voxel)
    curves: dict[str, list[tuple[int, float, float]]] = {"Gerchberg-Papoulis, gridded": [], "ours (FISTA, not gridded)": []}
    for i, volume in enumerate(gridded.gerchberg_papoulis(100), 1):
        if i in (1, 2, 4, 8, 16, 32, 50, 100):
            errors = judge(sphere.tomogram(volume), sphere.phantom.sphere)
            curves["Gerchberg-Papoulis, gridded"].append((2 * i, errors.ri, errors.volume))
    for iterations in (1, 2, 4, 8, 16, 32):
        recipe = replace(sphere.recipe, reconstruction=replace(sphere.recipe.reconstruction, iterations=iterations))
        (found,) = reconstruct(sphere.fields, recipe)
        errors = judge(found, sphere.phantom.sphere)
        curves["ours (FISTA, not gridded)"].append((2 * iterations + 1, errors.ri, errors.volume))
    return curves


def profiles(sphere: OneSphere) -> dict[str, Tomogram]:
    """The sphere by each method."""
    gridded = GriddedSpectrum(sphere.rytov, sphere.shape, sphere.voxel)
    *_, papoulis = gridded.gerchberg_papoulis(50)
    (fast,) = reconstruct(sphere.fields, sphere.recipe)
    (accurate,) = reconstruct(sphere.fields, recipe_of("accurate"))
    return {
        "direct inversion": sphere.tomogram(gridded.volume()),
        "Gerchberg-Papoulis, 50": sphere.tomogram(papoulis),
        "fast": fast,
        "accurate": accurate,
    }


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Least seconds of some calls after a first one that fills the caches."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def side_by_side(sphere: OneSphere) -> list[str]:
    """Lines of two tables: fields and tomograms by us and by others, each with its time in the same minute and its error."""
    import qpretrieve
    from helpers_mie import Rig, fields

    frames, truth = sphere.holograms.holograms, sphere.phantom.sphere

    def theirs(frame: NDArray[Any]) -> NDArray[np.complexfloating]:
        found: NDArray[np.complexfloating] = qpretrieve.OffAxisHologram(frame.astype(float)).run_pipeline(
            filter_name="disk", filter_size=1 / 3
        )
        return found

    def all_theirs() -> None:
        for frame in frames:
            theirs(frame)

    def papoulis() -> Tomogram:
        *_, volume = GriddedSpectrum(sphere.rytov, sphere.shape, sphere.voxel).gerchberg_papoulis(50)
        return sphere.tomogram(volume)

    def ours() -> Tomogram:
        operator = EwaldOperator(sphere.rytov.k_in_rad_um, sphere.rytov.optics, sphere.shape, sphere.voxel)
        image = operator.right_hand_side(operator.samples(sphere.rytov.psi))
        return sphere.tomogram(invert(image, operator, sphere.recipe))

    def whole() -> Tomogram:
        fringes = measure_fringes(sphere.holograms)
        (found,) = reconstruct(retrieve_fields(sphere.holograms, sphere.recipe, fringes=fringes), sphere.recipe)
        return found

    assert sphere.holograms.reference is not None
    exact = np.angle(fields(truth, Rig(frames=1))[0])
    ratio = theirs(frames[0])[0] / theirs(sphere.holograms.reference[0])[0]
    # Which of the two sidebands it takes is its own choice; the other's phase has the other sign.
    conjugate = min((np.angle(ratio), -np.angle(ratio)), key=lambda phase: _phase_error(phase, exact))
    phases = {"ours": np.angle(sphere.fields.w[0]), "qpretrieve": conjugate}
    fringes = measure_fringes(sphere.holograms)
    lines = [
        f"| fields of 49 frames, {torch.get_num_threads()} threads | seconds | phase of the normal frame, rms error |",
        "|---|---|---|",
    ]
    for name, work in (
        (
            "ours (sideband of all, reference of the session known, 0.1 um pitch, background)",
            lambda: retrieve_fields(sphere.holograms, sphere.recipe, fringes=fringes),
        ),
        ("qpretrieve (sideband of each frame, at the camera's pitch, no background)", all_theirs),
    ):
        lines.append(f"| {name} | {timed(work):.2f} | {1000 * _phase_error(phases[name.split(' ')[0]], exact):.0f} mrad |")
    lines += [
        "",
        "| 7.5 um sphere, contrast 0.033 | seconds | mean RI | volume | dry mass | elongation |",
        "|---|---|---|---|---|---|",
    ]
    for name, method in (
        ("inversion: ours, 16 iterations, the geometry's operator made anew", ours),
        ("inversion: plain NumPy Gerchberg-Papoulis, 50 iterations, same spectra and grid", papoulis),
        ("holograms to RI: fast mode, whole", whole),
        ("fields to RI: accurate mode", lambda: reconstruct(sphere.fields, recipe_of("accurate"))[0]),
    ):
        errors = judge(method(), truth)
        percents = " | ".join(f"{value:+.1f} %" for value in (errors.ri, errors.volume, errors.mass))
        lines.append(f"| {name} | {timed(method, 1 if 'accurate' in name else 3):.2f} | {percents} | {errors.elongation:.3f} |")
    return lines


def _phase_error(found: NDArray[np.floating[Any]], exact: NDArray[np.floating[Any]]) -> float:
    """Rms over the middle of the frame, in rad, after a plane; ``exact`` is brought to the other's pitch."""
    from scipy.ndimage import affine_transform

    step = exact.shape[0] / found.shape[0]  # the first samples of both grids lie at the same place
    truth = exact if step == 1 else affine_transform(exact, [step, step], output_shape=found.shape, order=5)
    difference = np.angle(np.exp(1j * (found - truth)))
    n = len(difference)
    part = difference[n // 4 : -(n // 4), n // 4 : -(n // 4)]
    y, x = np.mgrid[: len(part), : len(part)]
    terms = np.stack([np.ones(part.size), x.ravel(), y.ravel()], 1)
    left = part.ravel() - terms @ np.linalg.lstsq(terms, part.ravel(), rcond=None)[0]
    return float(left.std())


# --- pictures -----------------------------------------------------------------------------------


def draw_profiles(found: dict[str, Tomogram], sphere: OneSphere, path: Path) -> None:
    """Contrast along x and along z through the middle, each method against the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    radius, contrast = sphere.phantom.sphere.radii_um[-1], sphere.phantom.sphere.ri[-1] - MEDIUM_RI
    for axis, (title, dimension) in zip(figure.subplots(1, 2, sharey=True), (("x", 2), ("z", 0)), strict=True):
        reach = np.linspace(-7, 7, 1401)
        axis.plot(reach, np.where(np.abs(reach) < radius, contrast, 0), color="black", lw=1, label="truth")
        for name, tomogram in found.items():
            middle = [n // 2 for n in tomogram.ri.shape]
            index: list[Any] = list(middle)
            index[dimension] = slice(None)
            n, pitch = tomogram.ri.shape[dimension], tomogram.voxel_um[dimension]
            axis.plot((np.arange(n) - n // 2) * pitch, tomogram.ri[tuple(index)] - MEDIUM_RI, lw=1.2, label=name)
        axis.set(xlabel=f"{title} (um)", xlim=(-7, 7), title=f"along {title}")
    figure.axes[0].set_ylabel("RI minus that of the medium")
    figure.axes[1].legend(fontsize=8)
    figure.suptitle("A 7.5 um sphere of contrast 0.033 from exact scattering, 10,000 electrons a pixel")
    figure.savefig(path, dpi=110)


def draw_convergence(curves: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Absolute error of RI and volume against the count of 3-D transforms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (title, column) in zip(figure.subplots(1, 2), (("mean RI, % of the contrast", 1), ("volume, %", 2)), strict=True):
        for name, points in curves.items():
            axis.plot([p[0] for p in points], [abs(p[column]) for p in points], marker="o", ms=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="3-D transforms", ylabel=f"error of the {title}")
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The whole benchmark, or the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("bench-reconstruction"), help="folder of figures, plots and what is done"
    )
    parser.add_argument("--phantoms", type=int, default=200, help="phantoms of the fast mode")
    parser.add_argument("--accurate", type=int, default=200, help="phantoms of the accurate mode (about 30 s each)")
    parser.add_argument(
        "--seed", type=int, default=20261123, help=f"any but {FIT_SEED}, to which the uncertainties were fitted"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each; no timings then")
    parser.add_argument("--skip-plots", action="store_true", help="the tables only")
    parser.add_argument("--docs", type=Path, help="documentation to bring up to date: benchmarks.md and images/ below it")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    threads = torch.get_num_threads()
    print(f"seed {asked.seed}, {threads} threads")
    lines = [
        f"`make bench-reconstruction`: seed {asked.seed}, {threads} threads, {dt.date.today()}, torch {torch.__version__}.",
        "",
    ]
    counts = {mode: count for mode, count in (("fast", asked.phantoms), ("accurate", asked.accurate)) if count}
    for mode, rows in all_measured(asked.out, counts, asked.seed, asked.workers).items():
        lines += table(mode, rows) + [""]
    if not asked.skip_plots:
        sphere = OneSphere()
        lines += side_by_side(sphere) + [""]
        draw_convergence(convergence(sphere), asked.out / "error-against-transforms.png")
        draw_profiles(profiles(sphere), sphere, asked.out / "profiles.png")
    (asked.out / "tables.md").write_text("\n".join(lines))
    print("\n".join(lines))
    if asked.docs:
        publish(lines, asked.out, asked.docs)


def publish(lines: list[str], out: Path, docs: Path) -> None:
    """Put the tables between the page's markers, and the plots beside the other pictures."""
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"{END}{after}")
    for name in ("profiles", "error-against-transforms"):
        if (out / f"{name}.png").exists():
            shutil.copy(out / f"{name}.png", docs / "images" / f"reconstruction-{name}.png")


if __name__ == "__main__":
    main()
