"""Morphology: tomogram -> cells -> the six parameters of Ryu et al. 2021.

Importable alone, for notebooks::

    for cell in find_cells(tomogram, recipe):
        morphology = measure(cell, recipe)
"""

from wbcd.morphology.cells import find_cells
from wbcd.morphology.measure import measure

__all__ = ["find_cells", "measure"]
