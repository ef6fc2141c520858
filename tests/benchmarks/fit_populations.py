"""What must be drawn so that the *measured* populations are the published ones: `python tests/benchmarks/fit_populations.py`.

Ryu et al. 2021 give what their instrument measured above RI 1.35. Optics and reconstruction widen a cell and thin its protein,
so phantoms drawn with the published values come out 8 to 12 % too large. Cells of each class go through the fast optics, with
donors; each published mean is divided by what the line makes of the drawn one, each SD likewise (less the donors' share), and
again, with the same random numbers, until it stays. Prints the table ``DRAWN`` of wbcd/simulation/cells.py.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.morphology import measure
from wbcd.recipe import Recipe
from wbcd.simulation import cells
from wbcd.simulation.cells import CLASSES, POPULATIONS, Population, sample_phantom
from wbcd.training.simulated import DONOR_DENSITY, DONOR_VOLUME, MEDIUM_SD, Seen, of_donor, simulate_cell

NAMES = ("volume_fl", "surface_um2", "sphericity", "dry_mass_pg", "density_g_dl")
DONORS = 20


def one(task: tuple[str, int, int, dict[str, Population]]) -> tuple[list[float], list[float]] | None:
    """Drawn and measured values, in the order of NAMES, of cell ``number`` of a class; None where none was found whole."""
    kind, number, seed, drawn = task
    torch.set_num_threads(1)
    cells.DRAWN = drawn
    draw = np.random.SeedSequence(seed, spawn_key=(CLASSES.index(kind), number))
    found = simulate_cell(kind, number % DONORS, draw)
    if found is None:
        return None
    phantom = of_donor(sample_phantom(kind, np.random.default_rng(draw)), number % DONORS)
    surface = math.pi ** (1 / 3) * (6 * phantom.volume_fl) ** (2 / 3) / phantom.sphericity
    seen = measure(found.cell if isinstance(found, Seen) else found, Recipe())
    true = [phantom.volume_fl, surface, phantom.sphericity, phantom.dry_mass_pg, phantom.density_g_dl]
    return true, [seen.volume_fl, seen.surface_area_um2, seen.sphericity, seen.dry_mass_pg, seen.protein_density_g_dl]


def corrected(kind: str, true: NDArray[np.float64], seen: NDArray[np.float64]) -> Population:
    """The population to draw from next."""
    rows: dict[str, Any] = {}
    for column, name in enumerate(NAMES):
        mean, sd = getattr(POPULATIONS[kind], name)
        wanted_mean = mean * true[:, column].mean() / seen[:, column].mean()
        wanted_sd = sd * true[:, column].std() / seen[:, column].std()
        medium = 100 * MEDIUM_SD / cells.RI_INCREMENT_ML_G
        shares = {"volume_fl": DONOR_VOLUME * wanted_mean, "density_g_dl": math.hypot(DONOR_DENSITY * wanted_mean, medium)}
        donors = shares.get(name, 0.0)
        rows[name] = (round(float(wanted_mean), 4), round(math.sqrt(max(wanted_sd**2 - donors**2, (0.3 * wanted_sd) ** 2)), 4))
    return Population(**rows)


def main() -> None:
    """Some rounds, each a line a class: measured over published, mean and SD."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=120, help="of each class and round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    drawn = dict(cells.DRAWN)
    with ProcessPoolExecutor(asked.workers) as pool:
        for round_ in range(asked.rounds):
            print(f"round {round_ + 1}: measured over published, mean (SD), of {asked.cells} cells of each class", flush=True)
            tasks = [(kind, number, asked.seed, drawn) for kind in CLASSES for number in range(asked.cells)]
            results = list(pool.map(one, tasks, chunksize=4))
            updated = {}
            for kind in CLASSES:
                pairs = [r for task, r in zip(tasks, results, strict=True) if task[0] == kind and r is not None]
                true, seen = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
                ratios = [
                    f"{name} {seen[:, i].mean() / getattr(POPULATIONS[kind], name)[0]:.3f} "
                    f"({seen[:, i].std() / getattr(POPULATIONS[kind], name)[1]:.2f})"
                    for i, name in enumerate(NAMES)
                ]
                print(f"  {kind} ({len(pairs)}): " + ", ".join(ratios), flush=True)
                updated[kind] = corrected(kind, true, seen)
            drawn = updated
            for kind, population in drawn.items():
                print(f'    "{kind}": {population},', flush=True)


if __name__ == "__main__":
    main()
