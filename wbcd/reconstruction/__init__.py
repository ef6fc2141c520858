"""Reconstruction: off-axis holograms -> complex fields -> Ewald caps -> refractive-index tomogram.

Importable alone, for notebooks::

    fields = retrieve_fields(stack, recipe)
    for tomogram in reconstruct(fields, recipe): ...
"""

from wbcd.reconstruction.demodulation import demodulate
from wbcd.reconstruction.field import retrieve_fields
from wbcd.reconstruction.fringes import find_axis, measure_fringes, measure_illumination
from wbcd.reconstruction.operator import EwaldOperator
from wbcd.reconstruction.tomogram import invert, potential_to_ri, reconstruct, ri_to_potential, rytov_to_ri

__all__ = [
    "EwaldOperator",
    "demodulate",
    "find_axis",
    "invert",
    "measure_fringes",
    "measure_illumination",
    "potential_to_ri",
    "reconstruct",
    "retrieve_fields",
    "ri_to_potential",
    "rytov_to_ri",
]
