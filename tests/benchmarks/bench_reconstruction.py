"""`make bench-reconstruction`: the reconstruction against exact scattering, and against what others do.

Random exact phantoms (tests/helpers_phantoms.py) go through holograms, fields and inversion. Every phantom's figures are
appended to a file of the output folder as they come, so a broken-off run goes on where it stopped. Prints a table, writes
it as Markdown and two plots: profiles through one sphere, and error against the number of 3-D transforms. The timings are
taken in the same run: our field retrieval beside qpretrieve's, our fast mode beside a plain NumPy Gerchberg-Papoulis of 50
iterations on the same grid.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_phantoms import MEDIUM_RI, Phantom, judge, random_phantom
from numpy.typing import NDArray

from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import measure_fringes, reconstruct, retrieve_fields, rytov_to_ri
from wbcd.reconstruction.operator import EwaldOperator
from wbcd.reconstruction.spectrum import RytovStack, locate, rytov, wave_numbers
from wbcd.records import FieldStack, HologramStack, Tomogram

BARS = {
    "fast": {"ri": (1.0, 4.0), "volume": (5.0, 10.0), "mass": (2.0, 6.0), "elongation": (0.97, 1.03), "seconds": 1.5},
    "accurate": {"ri": (0.4, 1.5), "volume": (1.5, 4.0), "mass": (1.0, 3.0), "elongation": (0.985, 1.015), "seconds": 60.0},
}


def recipe_of(mode: str) -> Recipe:
    recipe = Recipe()
    return replace(recipe, reconstruction=replace(recipe.reconstruction, mode=mode))


def measured(number: int, mode: str, seed: int) -> dict[str, Any]:
    """Errors of one phantom in per cent, what its rows in the database would say, and seconds from frames to RI."""
    phantom, recipe = random_phantom(number, seed), recipe_of(mode)
    stack = phantom.stack()
    started = time.perf_counter()
    (tomogram,) = reconstruct(retrieve_fields(stack, recipe, fringes=measure_fringes(stack)), recipe)
    seconds = time.perf_counter() - started
    sphere = phantom.sphere
    (cell,) = find_cells(tomogram, recipe)
    rows = measure(cell, recipe)
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
        "volume": 100 * (rows.volume_half_contrast_fl / volume - 1),
        "mass": 100 * (rows.dry_mass_half_contrast_pg / mass - 1),
        "volume_at_135": 100 * (rows.volume_fl / volume - 1),
        "mass_at_135": 100 * (rows.dry_mass_pg / mass - 1),
        "held_out_residual": report.held_out_residual,
        "refinement": asdict(report.refinement) if report.refinement else None,
        "sigmas": uncertain,
        "seconds": seconds,
    }


def all_measured(out: Path, mode: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The figures of phantoms 0 .. count - 1, those not in the file yet measured now."""
    path = out / f"{mode}-{seed}.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = {row["number"]: row for row in known}
    with path.open("a") as file:
        for number in range(count):
            if number not in rows:
                rows[number] = measured(number, mode, seed)
                file.write(json.dumps(rows[number], default=float) + "\n")
                file.flush()
                print(f"{mode} {number + 1}/{count}  {_short(rows[number])}", flush=True)
    return [rows[number] for number in range(count)]


def _short(row: dict[str, Any]) -> str:
    return " ".join(f"{name} {row[name]:+.2f}" for name in ("ri", "volume", "mass", "elongation", "seconds"))


def table(mode: str, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of one mode: median, 95th percentile, range, and the bar of each figure."""
    bars = BARS[mode]
    lines = [f"| {mode}, {len(rows)} phantoms | median | 95th percentile | bar |", "|---|---|---|---|"]
    named = {"ri": "mean RI, % of dn", "volume": "volume, %", "mass": "dry mass, %"}
    for key, name in named.items():
        values = np.abs([row[key] for row in rows])
        bar = "median <= {:g}, p95 <= {:g}".format(*bars[key])
        lines.append(f"| {name} | {np.median(values):.2f} | {np.percentile(values, 95):.2f} | {bar} |")
    for key, name in {"volume_at_135": "volume at RI 1.35, %", "mass_at_135": "dry mass at RI 1.35, %"}.items():
        values = np.abs([row[key] for row in rows])
        lines.append(f"| {name} | {np.median(values):.2f} | {np.percentile(values, 95):.2f} | |")
    stretch = [row["elongation"] for row in rows]
    low, high = bars["elongation"]
    lines.append(f"| axial elongation | {np.median(stretch):.3f} | {min(stretch):.3f} to {max(stretch):.3f} | {low}-{high} |")
    seconds = [row["seconds"] for row in rows]
    lines.append(f"| seconds a cell | {np.median(seconds):.2f} | {np.percentile(seconds, 95):.2f} | <= {bars['seconds']:g} |")
    for key in ("ri", "volume", "mass"):
        inside = np.mean([abs(row["sigmas"][key]) <= 1.96 for row in rows])
        lines.append(f"| 95 % interval of {key} covers the truth | {100 * inside:.0f} % | | 90-99 % |")
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
    """Lines of the table of timings, each pair in the same minute of the same machine."""
    import qpretrieve

    frames = sphere.holograms.holograms

    def others() -> None:
        for frame in frames:
            qpretrieve.OffAxisHologram(frame.astype(float)).run_pipeline(filter_name="disk", filter_size=1 / 3)

    def papoulis() -> None:
        for _ in GriddedSpectrum(sphere.rytov, sphere.shape, sphere.voxel).gerchberg_papoulis(50):
            pass

    def inversion() -> None:
        operator = EwaldOperator(sphere.rytov.k_in_rad_um, sphere.rytov.optics, sphere.shape, sphere.voxel)
        from wbcd.reconstruction import invert

        invert(operator.right_hand_side(operator.samples(sphere.rytov.psi)), operator, sphere.recipe)

    rows = (
        ("fields of 49 frames: ours", lambda: retrieve_fields(sphere.holograms, sphere.recipe)),
        ("fields of 49 frames: qpretrieve, sideband of each frame (no output pitch, no background)", others),
        ("inversion: ours, 16 iterations, with the geometry's operator made anew", inversion),
        ("inversion: plain NumPy Gerchberg-Papoulis, 50 iterations", papoulis),
        (
            "holograms to RI: fast mode, whole",
            lambda: reconstruct(retrieve_fields(sphere.holograms, sphere.recipe), sphere.recipe),
        ),
    )
    lines = [f"| {torch.get_num_threads()} threads | seconds |", "|---|---|"]
    return lines + [f"| {name} | {timed(work):.2f} |" for name, work in rows]


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
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--skip-plots", action="store_true", help="the tables only")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    print(f"seed {asked.seed}, {torch.get_num_threads()} threads")
    lines: list[str] = []
    if not asked.skip_plots:
        sphere = OneSphere()
        lines += side_by_side(sphere) + [""]
        draw_convergence(convergence(sphere), asked.out / "error-against-transforms.png")
        draw_profiles(profiles(sphere), sphere, asked.out / "profiles.png")
    for mode, count in (("fast", asked.phantoms), ("accurate", asked.accurate)):
        if count:
            lines += table(mode, all_measured(asked.out, mode, count, asked.seed)) + [""]
    (asked.out / "tables.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
