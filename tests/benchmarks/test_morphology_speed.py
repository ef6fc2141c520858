"""Time of finding and measuring on one core, and memory of a large field (CPU time: other processes do not count)."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from helpers_morphology import as_tomogram, rough, sphere

from wbcd.morphology import find_cells, measure
from wbcd.quality import judge_tomogram
from wbcd.recipe import Recipe
from wbcd.records import Tomogram
from wbcd.report.figures import thumbnail_png

pytestmark = pytest.mark.benchmark
RECIPE = Recipe()


def test_one_cell_crop_within_a_quarter_of_a_second() -> None:
    tomogram = as_tomogram(sphere(8.0), inside=1.37)
    measure(find_cells(tomogram, RECIPE)[0], RECIPE)
    started = time.process_time()
    for _ in range(5):
        measure(find_cells(tomogram, RECIPE)[0], RECIPE)
    seconds = (time.process_time() - started) / 5
    print(f"find and measure, one cell of 268 fL in 100 x 150 x 150: {seconds:.3f} s")
    assert seconds < 0.4  # 0.15 s on a quiet core, 0.22 s on a shared one


def test_a_thumbnail_within_twenty_milliseconds() -> None:
    cell = find_cells(as_tomogram(rough(9.5, 0.1, 1, waves=(4, 10)), inside=1.375), RECIPE)[0]
    thumbnail_png(cell)
    started = time.process_time()
    for _ in range(10):
        thumbnail_png(cell)
    seconds = (time.process_time() - started) / 10
    print(f"thumbnail: {1000 * seconds:.1f} ms")
    assert seconds < 0.02  # 7 ms measured


def test_a_field_of_42_cells_within_memory() -> None:
    pitch = (0.19, 0.09, 0.09)
    ri = np.random.default_rng(0).normal(1.337, 5e-4, (210, 732, 732)).astype(np.float32)
    body = (sphere(8.0, shape=(64, 110, 110), pitch=pitch) * 0.033).astype(np.float32)
    places = [(y, x) for y in range(60, 670, 120) for x in range(60, 670, 100)]
    for y, x in places:
        ri[70:134, y - 55 : y + 55, x - 55 : x + 55] += body
    tomogram = Tomogram(ri, pitch, 1.337)
    tracemalloc.start()
    started = time.process_time()
    assert judge_tomogram(tomogram, RECIPE).accepted
    cells = find_cells(tomogram, RECIPE)
    seconds = (time.process_time() - started) / len(cells)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"{len(cells)} cells in 210 x 732 x 732: {seconds:.2f} s a cell, {peak:.0f} MiB beside the volume's 429")
    assert len(cells) == len(places)
    assert not any(cell.touches_border for cell in cells)
    assert peak < 1500
    assert seconds < 1.5
